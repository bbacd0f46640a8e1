//! What other proxies are told: to relay, and nothing else.

use std::path::Path;

use super::Options;

/// Where Debian has nginx's module.
pub const NGINX_STREAM: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";

pub fn haproxy(options: &Options) -> String {
    let Options { listen, upstream, threads } = options;
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
  bind {listen} backlog 4096
  server upstream {upstream}
"
    )
}

pub fn nginx(options: &Options, folder: &Path) -> String {
    let Options { listen, upstream, .. } = options;
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
    listen {listen} backlog=4096;
    proxy_pass {upstream};
    proxy_timeout 1h;
    tcp_nodelay on;
  }}
}}
"
    )
}
