//! What other proxies are told: to relay, and nothing else.

use std::path::Path;

use super::Options;
use crate::web::nginx::tls_settings;

/// Where Debian has nginx's module.
pub const NGINX_STREAM: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";

pub fn haproxy(options: &Options) -> String {
    let Options { listen, upstream, threads, tls } = options;
    let tls = tls.as_ref().map_or(String::new(), |folder| {
        format!(" ssl crt {}/both.pem ssl-min-ver TLSv1.3", folder.display())
    });
    format!(
        "global
  maxconn 7000
  nbthread {threads}
defaults
  mode tcp
  option splice-auto
  timeout connect 5s
  timeout client 1h
  timeout server 1h
listen relay
  bind {listen} backlog 4096{tls}
  server upstream {upstream}
"
    )
}

pub fn nginx(options: &Options, folder: &Path) -> String {
    let Options { listen, upstream, tls, .. } = options;
    let ssl = tls.as_ref().map_or("", |_| " ssl");
    let tls = tls.as_deref().map(tls_settings).unwrap_or_default();
    let folder = folder.display();
    format!(
        "load_module {NGINX_STREAM};
daemon off;
master_process off;
pid {folder}/pid;
worker_rlimit_nofile 50000;
events {{
  worker_connections 40000;
}}
stream {{
  access_log off;
  server {{
    listen {listen}{ssl} backlog=4096;
    {tls}
    proxy_pass {upstream};
    proxy_timeout 1h;
    tcp_nodelay on;
  }}
}}
"
    )
}
