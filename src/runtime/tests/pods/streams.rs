//! Cases of attach, terminals and port-forward.

use std::time::Duration;

use mussel_runtime::{Output, Wanted};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::lab::{self, Lab};

const ALL: Wanted = Wanted { stdin: true, stdout: true, stderr: true, tty: false };

/// Reads until the text has come.
async fn expect(stream: &mut Output, wanted: &str) -> String {
    let mut seen = Vec::new();
    let mut chunk = [0; 1024];
    loop {
        let length = stream.read(&mut chunk).await.unwrap();
        seen.extend_from_slice(&chunk[..length]);
        let text = String::from_utf8_lossy(&seen).into_owned();
        if text.contains(wanted) {
            return text;
        }
        assert!(length > 0, "the end came before {wanted:?}: {text:?}");
    }
}

async fn rest(stream: &mut Output) -> String {
    let mut text = String::new();
    tokio::time::timeout(Duration::from_secs(10), stream.read_to_string(&mut text)).await.unwrap().unwrap();
    text
}

pub async fn attached_clients_see_and_write(lab: Lab) {
    let runtime = lab.open().await;
    let mut client = runtime.client();
    let pod = lab.sandbox_config("attach");
    let sandbox = lab::run_sandbox(&mut client, &pod).await;
    let mut config = lab::script("main", "cat; echo done >&2");
    (config.stdin, config.stdin_once) = (true, true);
    let id = lab::create(&mut client, &sandbox, &pod, config).await;
    lab::start(&mut client, &id).await;
    let mut watcher = runtime.attach(&id, Wanted { stdin: false, ..ALL }).await.unwrap();
    let mut gone = runtime.attach(&id, Wanted { stdin: false, ..ALL }).await.unwrap();
    let mut writer = runtime.attach(&id, ALL).await.unwrap();
    writer.stdin.as_mut().unwrap().write_all(b"hello\n").await.unwrap();
    for session in [&mut watcher, &mut gone, &mut writer] {
        expect(session.stdout.as_mut().unwrap(), "hello\n").await;
    }
    drop(gone);
    writer.stdin.as_mut().unwrap().write_all(b"more\n").await.unwrap();
    writer.stdin = None;
    assert_eq!(rest(writer.stdout.as_mut().unwrap()).await, "more\n");
    assert_eq!(rest(watcher.stdout.as_mut().unwrap()).await, "more\n");
    assert_eq!(rest(writer.stderr.as_mut().unwrap()).await, "done\n");
    assert_eq!(lab::wait(&mut client, &id).await.exit_code, 0);
    let log = lab.log("attach", "main");
    assert!(log.contains("stdout F hello") && log.contains("stdout F more") && log.contains("stderr F done"), "{log}");
    assert!(runtime.attach(&id, ALL).await.is_err());
}

pub async fn terminals(lab: Lab) {
    let runtime = lab.open().await;
    let mut client = runtime.client();
    let pod = lab.sandbox_config("tty");
    let sandbox = lab::run_sandbox(&mut client, &pod).await;
    let mut config = lab::script("main", "stty -echo; echo $TERM; while read line; do stty size; echo got $line; done");
    (config.stdin, config.tty) = (true, true);
    let id = lab::create(&mut client, &sandbox, &pod, config).await;
    lab::start(&mut client, &id).await;
    while !lab.log("tty", "main").contains("xterm") {
        tokio::task::yield_now().await;
    }
    let mut session = runtime.attach(&id, Wanted { tty: true, ..ALL }).await.unwrap();
    session.terminal.as_ref().unwrap().resize(123, 45).await.unwrap();
    session.stdin.as_mut().unwrap().write_all(b"word\n").await.unwrap();
    let text = expect(session.stdout.as_mut().unwrap(), "got word").await;
    assert!(text.contains("45 123\r\n"), "{text:?}");
    // Leaving does not end a container that wants more than one client.
    drop(session);
    let mut session = runtime.attach(&id, Wanted { tty: true, ..ALL }).await.unwrap();
    session.stdin.as_mut().unwrap().write_all(b"again\n").await.unwrap();
    expect(session.stdout.as_mut().unwrap(), "got again").await;

    let command = ["/bin/sh", "-c", "stty size; tty=$(readlink /proc/self/fd/0); echo on $tty; read x; exit 4"];
    let command = command.map(str::to_owned);
    let mut shell = runtime.exec(&id, &command, Wanted { tty: true, ..ALL }).await.unwrap();
    shell.terminal.as_ref().unwrap().resize(80, 24).await.unwrap();
    expect(shell.stdout.as_mut().unwrap(), "on /dev/pts/").await;
    shell.stdin.as_mut().unwrap().write_all(b"\n").await.unwrap();
    rest(shell.stdout.as_mut().unwrap()).await;
    assert_eq!(shell.exit.take().unwrap().await.unwrap(), 4);

    let command = ["cat"].map(str::to_owned);
    let mut cat = runtime.exec(&id, &command, ALL).await.unwrap();
    let mut input = cat.stdin.take().unwrap();
    let big = vec![b'x'; 1 << 20];
    let write = async {
        input.write_all(&big).await.unwrap();
        drop(input);
    };
    let (_, text) = tokio::join!(write, rest(cat.stdout.as_mut().unwrap()));
    assert_eq!(text.len(), 1 << 20);
    assert_eq!(cat.exit.take().unwrap().await.unwrap(), 0);
}

pub async fn ports_of_the_pod(lab: Lab) {
    let runtime = lab.open().await;
    let mut client = runtime.client();
    let pod = lab.sandbox_config("ports");
    let sandbox = lab::run_sandbox(&mut client, &pod).await;
    let script = "echo ready; exec nc -l -p 8080 -e /bin/cat";
    let id = lab::create(&mut client, &sandbox, &pod, lab::script("main", script)).await;
    lab::start(&mut client, &id).await;
    let mut stream = loop {
        match runtime.port_forward(&sandbox, 8080).await {
            Ok(stream) => break stream,
            Err(_) => tokio::task::yield_now().await,
        }
    };
    stream.write_all(b"ping").await.unwrap();
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"ping");
    let refused = runtime.port_forward(&sandbox, 9).await.err().unwrap();
    assert!(mussel_runtime::chain(&refused).contains("refused"));
}
