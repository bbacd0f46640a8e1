//! [`LinkBuffer`], and what it is made of.

mod adapters;
mod chain;
mod link_buffer;
mod nocopy;
mod node;
mod read;
mod recv;
mod seam;
mod write;

pub use chain::{Chain, IO_BYTES_MAX, IO_VECTORS_MAX, Iter as ChainIter};
pub use link_buffer::LinkBuffer;
pub use nocopy::{LinkReader, LinkWriter};
pub use read::Chunks;
pub use recv::RecvBuffer;
pub(crate) use recv::vector;
pub use seam::BufferSeam;
