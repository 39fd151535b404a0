mod support;
use std::process::Command;
#[tokio::test(flavor = "multi_thread")]
async fn smoke() {
    let server = support::TestServer::start().await;
    let (cert, key) = server.ca.issue("admin", &["system:masters"], &[]);
    let d = "/tmp/apismoke";
    std::fs::create_dir_all(d).unwrap();
    std::fs::write(format!("{d}/ca"), &server.ca.pem).unwrap();
    std::fs::write(format!("{d}/crt"), cert).unwrap();
    std::fs::write(format!("{d}/key"), key).unwrap();
    let script = std::fs::read_to_string(format!("{d}/script.sh")).unwrap();
    let url = server.url().to_string();
    let out = tokio::task::spawn_blocking(move || {
        Command::new("bash").arg("-c").arg(script).env("URL", url).env("HOME", "/tmp/apismoke/home").output().unwrap()
    }).await.unwrap();
    println!("{}", String::from_utf8_lossy(&out.stdout));
    println!("{}", String::from_utf8_lossy(&out.stderr));
    server.stop().await;
}
