//! What these tests share beside what all tests do.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part")]

pub mod quic;
pub mod site;
pub mod tls;
