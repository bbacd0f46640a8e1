//! nginx as a server: one process in the foreground, with a configuration of ours.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::Options;
use super::shape::Ask;

/// The command, after its files are written below the folder.
pub fn command(folder: &Path, options: &Options) -> io::Result<Command> {
    let folder = folder.join(format!("nginx-{}", options.listen.port()));
    fs::create_dir_all(&folder)?;
    for ask in [Ask::Hello, Ask::Bytes] {
        fs::write(folder.join(&ask.path()[1..]), ask.answer())?;
    }
    let file = folder.join("nginx.conf");
    fs::write(&file, configuration(&folder, options))?;
    let mut command = Command::new(program());
    command.arg("-p").arg(&folder).arg("-c").arg(&file).args(["-e", "stderr"]);
    Ok(command)
}

/// It lies where only root looks for programs.
pub fn program() -> PathBuf {
    let sbin = Path::new("/usr/sbin/nginx");
    if sbin.exists() { sbin.to_owned() } else { "nginx".into() }
}

/// What a server is told beside `ssl`, with the folder of the certificate.
pub fn tls_settings(folder: &Path) -> String {
    let folder = folder.display();
    format!(
        "ssl_protocols TLSv1.3;
    ssl_certificate {folder}/certificate.pem;
    ssl_certificate_key {folder}/key.pem;"
    )
}

/// The short text is part of the configuration, the rest is files.
fn configuration(folder: &Path, options: &Options) -> String {
    let folder = folder.display();
    let listen = options.listen;
    let tls = options.tls.as_ref().map(|_| " ssl").unwrap_or_default();
    let http2 = if options.http2 { " http2" } else { "" };
    let certificate = options.tls.as_deref().map(tls_settings).unwrap_or_default();
    format!(
        "daemon off;
master_process off;
pid {folder}/pid;
events {{
  worker_connections 20000;
}}
http {{
  access_log off;
  default_type text/plain;
  keepalive_requests 1000000000;
  sendfile on;
  tcp_nopush on;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  server {{
    listen {listen}{tls}{http2} backlog=4096;
    {certificate}
    root {folder};
    location = /hello {{
      return 200 \"hello\\n\";
    }}
  }}
}}
"
    )
}
