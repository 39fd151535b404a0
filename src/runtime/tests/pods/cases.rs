//! The cases. Each leaves the lab as it likes.

use std::fs;
use std::time::Duration;

use mussel_cri::v1::*;
use tonic::Code;

use crate::lab::{self, Case, Client, Lab};
use crate::streams;

macro_rules! cases {
    ($($module:ident::$name:ident,)*) => {
        &[$((stringify!($name), |lab| Box::pin($module::$name(lab)))),*]
    };
}

pub const ALL: &[(&str, Case)] = cases![
    self::a_pod_lives_and_goes,
    self::what_a_container_sees,
    self::users_and_capabilities,
    self::commands_in_a_container,
    self::programs_that_are_missing,
    self::stopping_takes_its_time_or_not,
    self::limits_and_their_end,
    self::processes_of_the_pod,
    self::mounts_show_and_hide,
    self::pods_outlive_the_runtime,
    self::a_dead_shim_takes_its_pod_along,
    self::nothing_survives_a_reboot,
    self::a_failed_sandbox_leaves_nothing,
    self::logs_rotate,
    self::many_at_once,
    streams::attached_clients_see_and_write,
    streams::terminals,
    streams::ports_of_the_pod,
];

fn linux(config: &mut ContainerConfig) -> (&mut LinuxContainerSecurityContext, &mut LinuxContainerResources) {
    let linux = config.linux.get_or_insert_default();
    (linux.security_context.get_or_insert_default(), linux.resources.get_or_insert_default())
}

async fn a_pod_lives_and_goes(lab: Lab) {
    let runtime = lab.open().await;
    let mut client = runtime.client();
    let pod = lab.sandbox_config("one");
    let sandbox = lab::run_sandbox(&mut client, &pod).await;
    let again = client.run_pod_sandbox(RunPodSandboxRequest { config: Some(pod.clone()), ..Default::default() }).await;
    assert_eq!(again.unwrap_err().code(), Code::AlreadyExists);
    let config = lab::script("main", "echo hello; echo oops >&2; printf end; exit 3");
    let id = lab::create(&mut client, &sandbox, &pod, config).await;
    assert_eq!(lab::status(&mut client, &id).await.state(), ContainerState::ContainerCreated);
    lab::start(&mut client, &id).await;
    let status = lab::wait(&mut client, &id).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (3, "Error"));
    assert!(status.created_at <= status.started_at && status.started_at <= status.finished_at);
    let log = lab.log("one", "main");
    for line in [" stdout F hello\n", " stderr F oops\n", " stdout P end\n"] {
        assert!(log.contains(line), "{log}");
    }
    assert_eq!(sandboxes(&mut client).await[0].state(), PodSandboxState::SandboxReady);
    client.stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: sandbox.clone() }).await.unwrap();
    assert_eq!(sandboxes(&mut client).await[0].state(), PodSandboxState::SandboxNotready);
    lab::remove_sandbox(&mut client, &sandbox).await;
    lab::remove_sandbox(&mut client, &sandbox).await;
    nothing_left(&lab);
}

async fn sandboxes(client: &mut Client) -> Vec<PodSandbox> {
    client.list_pod_sandbox(ListPodSandboxRequest::default()).await.unwrap().into_inner().items
}

fn nothing_left(lab: &Lab) {
    for dir in ["run/shim", "run/netns", "run/containers", "run/sandboxes", "root/containers", "root/sandboxes"] {
        let left: Vec<_> = fs::read_dir(lab.dir.join(dir)).unwrap().flatten().map(|entry| entry.path()).collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

async fn what_a_container_sees(lab: Lab) {
    let runtime = lab.open().await;
    let mut client = runtime.client();
    let mut pod = lab.sandbox_config("see");
    pod.dns_config = Some(DnsConfig { servers: vec!["10.43.0.10".into()], ..Default::default() });
    pod.linux.as_mut().unwrap().sysctls = [("net.ipv4.ip_unprivileged_port_start".to_owned(), "7".to_owned())].into();
    let sandbox = lab::run_sandbox(&mut client, &pod).await;
    let mut see = async |script: &str| {
        let name = format!("c{}", script.len());
        lab::output(&mut client, &lab, &sandbox, &pod, lab::script(&name, script)).await
    };
    assert_eq!(see("hostname; cat /etc/layered /etc/hostname").await, "see\ntop\nsee\n");
    assert_eq!(see("echo $IMAGE $HOME $$ $HOSTNAME; pwd").await, "yes /root 1 see\n/\n");
    assert_eq!(see("grep nameserver /etc/resolv.conf").await, "nameserver 10.43.0.10\n");
    assert_eq!(see("cat /proc/sys/net/ipv4/ip_unprivileged_port_start").await, "7\n");
    // Standard streams and the directory itself, and nothing of the shim's.
    assert_eq!(see("ls /proc/self/fd").await, "0\n1\n2\n3\n");
    assert_eq!(see("cat /proc/sys/kernel/../../1/oom_score_adj").await, "0\n");
    assert_eq!(see("grep -c . /proc/net/dev").await, "3\n");
    let writable =
        "cd /sys/fs/cgroup; for dir in . *; do touch $dir/x 2>/dev/null || echo 1 2>/dev/null >$dir/cgroup.procs; done";
    assert_eq!(see(&format!("{writable} && echo yes || echo no")).await, "no\n");
    // No signal is blocked or ignored. Not by way of a shell, which ignores some itself.
    let mut config = lab::script("signals", "");
    config.command = ["grep", "-E", "SigBlk|SigIgn", "/proc/self/status"].map(str::to_owned).to_vec();
    let text = lab::output(&mut client, &lab, &sandbox, &pod, config).await;
    assert_eq!(text, "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n");
    let mut config = lab::script("workdir", "pwd");
    config.working_dir = "/made/for/me".into();
    assert_eq!(lab::output(&mut client, &lab, &sandbox, &pod, config).await, "/made/for/me\n");
}

async fn users_and_capabilities(lab: Lab) {
    let runtime = lab.open().await;
    let mut client = runtime.client();
    let pod = lab.sandbox_config("user");
    let sandbox = lab::run_sandbox(&mut client, &pod).await;

    let mut config =
        lab::script("web", "id -u; id -g; id -G; echo $HOME; echo x >/dev/stderr; touch /f 2>/dev/null || echo denied");
    let (context, _) = linux(&mut config);
    context.run_as_username = "web".into();
    context.supplemental_groups = vec![77];
    let text = lab::output(&mut client, &lab, &sandbox, &pod, config).await;
    assert_eq!(text, "33\n33\n33 50 77\n/var/www\nx\ndenied\n");

    let mut config = lab::script("few", "grep CapEff /proc/self/status; grep NoNew /proc/self/status");
    let (context, _) = linux(&mut config);
    context.no_new_privs = true;
    context.capabilities = Some(Capability {
        add_capabilities: vec!["NET_ADMIN".into()],
        drop_capabilities: vec!["ALL".into()],
        ..Default::default()
    });
    let text = lab::output(&mut client, &lab, &sandbox, &pod, config).await;
    assert_eq!(text, "CapEff:\t0000000000001000\nNoNewPrivs:\t1\n");

    let mut config = lab::script(
        "all",
        "ls /dev | grep -c . ; touch /sys/fs/cgroup/x 2>/dev/null; mount -t tmpfs t /tmp && echo mounted",
    );
    linux(&mut config).0.privileged = true;
    let text = lab::output(&mut client, &lab, &sandbox, &pod, config).await;
    assert!(text.ends_with("mounted\n"), "{text}");

    let mut config =
        lab::script("fixed", "touch /x 2>/dev/null || echo read-only; echo ok >/dev/shm/y && cat /dev/shm/y");
    linux(&mut config).0.readonly_rootfs = true;
    assert_eq!(lab::output(&mut client, &lab, &sandbox, &pod, config).await, "read-only\nok\n");
}

async fn commands_in_a_container(lab: Lab) {
    let runtime = lab.open().await;
    let mut client = runtime.client();
    let pod = lab.sandbox_config("exec");
    let sandbox = lab::run_sandbox(&mut client, &pod).await;
    let mut config = lab::script("main", "exec sleep 1000");
    config.envs = vec![KeyValue { key: "FROM".into(), value: "pod".into() }];
    linux(&mut config).0.run_as_user = Some(Int64Value { value: 33 });
    let id = lab::create(&mut client, &sandbox, &pod, config).await;
    lab::start(&mut client, &id).await;
    assert_eq!(lab::exec(&mut client, &id, "echo $FROM; id -u; exit 7").await, ("pod\n33\n".into(), 7));
    assert_eq!(lab::exec(&mut client, &id, "kill -9 $$").await, (String::new(), 137));
    let (text, _) = lab::exec(&mut client, &id, "seq 1 20000 | tail -n 1").await;
    assert_eq!(text, "20000\n");
    // A background process that keeps the pipe does not keep the caller.
    let (text, _) = lab::exec(&mut client, &id, "sleep 500 & echo started").await;
    assert_eq!(text, "started\n");

    let request = |cmd: &[&str], timeout| ExecSyncRequest {
        container_id: id.clone(),
        cmd: cmd.iter().map(|word| (*word).to_owned()).collect(),
        timeout,
    };
    let late = client.exec_sync(request(&["sleep", "100"], 1)).await.unwrap_err();
    assert_eq!(late.code(), Code::DeadlineExceeded);
    let (text, _) = lab::exec(&mut client, &id, "ps | grep -c 'sleep 10[0]$' || true").await;
    assert_eq!(text, "0\n");
    let missing = client.exec_sync(request(&["nope"], 0)).await.unwrap_err();
    assert!(missing.message().contains("exec: \"nope\": executable file not found in $PATH"), "{missing}");

    // By the start of an id, as people type it.
    assert_eq!(lab::status(&mut client, &id[..13]).await.id, id);
    let outside = tempdir_of_shim(&lab, &sandbox);
    assert!(!outside.iter().any(|name| name.starts_with("exec-")), "{outside:?}");
}

fn tempdir_of_shim(lab: &Lab, sandbox: &str) -> Vec<String> {
    let dir = lab.dir.join("run/shim").join(sandbox);
    fs::read_dir(dir).unwrap().flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

async fn programs_that_are_missing(lab: Lab) {
    let runtime = lab.open().await;
    let mut client = runtime.client();
    let pod = lab.sandbox_config("missing");
    let sandbox = lab::run_sandbox(&mut client, &pod).await;
    for (name, why) in [
        ("nope", "exec: \"nope\": executable file not found in $PATH"),
        ("/no/where", "exec: \"/no/where\": stat /no/where: no such file or directory"),
    ] {
        let mut config = lab::script(&format!("c{}", name.len()), "");
        config.command = vec![name.into()];
        let id = lab::create(&mut client, &sandbox, &pod, config).await;
        let error = client.start_container(StartContainerRequest { container_id: id.clone() }).await.unwrap_err();
        assert!(error.message().contains(why), "{error}");
        let status = lab::status(&mut client, &id).await;
        assert_eq!((status.state(), status.exit_code), (ContainerState::ContainerExited, 128));
        assert_eq!(status.reason, "StartError");
        assert!(status.message.contains(why));
        client.remove_container(RemoveContainerRequest { container_id: id }).await.unwrap();
    }
    let mut config = lab::script("image", "");
    config.image.as_mut().unwrap().image = "no-such".into();
    let request = CreateContainerRequest {
        pod_sandbox_id: sandbox.clone(),
        config: Some(config),
        sandbox_config: Some(pod.clone()),
    };
    assert_eq!(client.create_container(request).await.unwrap_err().code(), Code::NotFound);
    let mut config = lab::script("user", "true");
    linux(&mut config).0.run_as_username = "stranger".into();
    let request =
        CreateContainerRequest { pod_sandbox_id: sandbox.clone(), config: Some(config), sandbox_config: Some(pod) };
    let error = client.create_container(request).await.unwrap_err();
    assert!(error.message().contains("no users found for \"stranger\""), "{error}");
    lab::remove_sandbox(&mut client, &sandbox).await;
    nothing_left(&lab);
}

async fn stopping_takes_its_time_or_not(lab: Lab) {
    let runtime = lab.open().await;
    let mut client = runtime.client();
    let pod = lab.sandbox_config("stop");
    let sandbox = lab::run_sandbox(&mut client, &pod).await;
    let mut stop = async |name: &str, script: &str, signal: Signal, timeout: i64| {
        let mut config = lab::script(name, script);
        config.stop_signal = signal.into();
        let id = lab::create(&mut client, &sandbox, &pod, config).await;
        lab::start(&mut client, &id).await;
        // The shell says when its trap is set.
        while !lab.log("stop", name).contains("ready") {
            tokio::task::yield_now().await;
        }
        client.stop_container(StopContainerRequest { container_id: id.clone(), timeout }).await.unwrap();
        client.stop_container(StopContainerRequest { container_id: id.clone(), timeout }).await.unwrap();
        let status = lab::status(&mut client, &id).await;
        assert_eq!(status.state(), ContainerState::ContainerExited);
        status.exit_code
    };
    let wait = "echo ready; while true; do sleep 0.01; done";
    assert_eq!(stop("gentle", &format!("trap 'exit 5' TERM; {wait}"), Signal::RuntimeDefault, 20).await, 5);
    assert_eq!(stop("other", &format!("trap 'exit 6' USR1; {wait}"), Signal::Sigusr1, 20).await, 6);
    assert_eq!(stop("deaf", &format!("trap '' TERM; {wait}"), Signal::RuntimeDefault, 1).await, 137);
    assert_eq!(stop("now", &format!("trap 'exit 5' TERM; {wait}"), Signal::RuntimeDefault, 0).await, 137);
}

async fn limits_and_their_end(lab: Lab) {
    let runtime = lab.open().await;
    let mut client = runtime.client();
    let pod = lab.sandbox_config("limits");
    let sandbox = lab::run_sandbox(&mut client, &pod).await;
    let mut config = lab::script("main", "exec sleep 1000");
    *linux(&mut config).1 = LinuxContainerResources {
        cpu_shares: 512,
        cpu_quota: 20_000,
        cpu_period: 100_000,
        memory_limit_in_bytes: 64 << 20,
        oom_score_adj: 500,
        ..Default::default()
    };
    let id = lab::create(&mut client, &sandbox, &pod, config).await;
    lab::start(&mut client, &id).await;
    assert_eq!(lab::exec(&mut client, &id, "cat /proc/1/oom_score_adj").await.0, "500\n");
    let v1 = fs::metadata("/sys/fs/cgroup/memory").is_ok();
    let file = if v1 { "/sys/fs/cgroup/memory/memory.limit_in_bytes" } else { "/sys/fs/cgroup/memory.max" };
    assert_eq!(lab::exec(&mut client, &id, &format!("cat {file}")).await.0, format!("{}\n", 64 << 20));
    for limit in [128_i64 << 20, 32 << 20] {
        let request = UpdateContainerResourcesRequest {
            container_id: id.clone(),
            linux: Some(LinuxContainerResources { memory_limit_in_bytes: limit, ..Default::default() }),
            ..Default::default()
        };
        client.update_container_resources(request).await.unwrap();
        assert_eq!(lab::exec(&mut client, &id, &format!("cat {file}")).await.0, format!("{limit}\n"));
    }
    let status = lab::status(&mut client, &id).await;
    let resources = status.resources.unwrap().linux.unwrap();
    assert_eq!((resources.memory_limit_in_bytes, resources.cpu_shares), (32 << 20, 512));

    let stats = client.container_stats(ContainerStatsRequest { container_id: id.clone() }).await.unwrap();
    let stats = stats.into_inner().stats.unwrap();
    assert!(stats.cpu.unwrap().usage_core_nano_seconds.unwrap().value > 0);
    assert!(stats.memory.unwrap().working_set_bytes.unwrap().value > 0);
    let stats = client.list_pod_sandbox_stats(ListPodSandboxStatsRequest::default()).await.unwrap().into_inner().stats;
    assert_eq!(stats[0].linux.as_ref().unwrap().containers.len(), 1);

    let mut config = lab::script("hungry", "echo ready; exec tail /dev/zero");
    linux(&mut config).1.memory_limit_in_bytes = 16 << 20;
    let id = lab::create(&mut client, &sandbox, &pod, config).await;
    lab::start(&mut client, &id).await;
    let status = lab::wait(&mut client, &id).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (137, "OOMKilled"));
}

async fn processes_of_the_pod(lab: Lab) {
    let runtime = lab.open().await;
    let mut client = runtime.client();
    let mut pod = lab.sandbox_config("shared");
    let shared = NamespaceOption { pid: NamespaceMode::Pod.into(), ..Default::default() };
    pod.linux.as_mut().unwrap().security_context.as_mut().unwrap().namespace_options = Some(shared.clone());
    let sandbox = lab::run_sandbox(&mut client, &pod).await;
    let mut config = lab::script("first", "sleep 2000 & exec sleep 1000");
    linux(&mut config).0.namespace_options = Some(shared.clone());
    let first = lab::create(&mut client, &sandbox, &pod, config).await;
    lab::start(&mut client, &first).await;
    let mut config = lab::script("second", "ps; cat /proc/1/comm; echo me $$");
    linux(&mut config).0.namespace_options = Some(shared);
    let text = lab::output(&mut client, &lab, &sandbox, &pod, config).await;
    assert!(text.contains("sleep 1000") && text.contains("pause\n") && !text.contains("me 1\n"), "{text}");
    // What the first process leaves behind goes with its container.
    client.stop_container(StopContainerRequest { container_id: first, timeout: 0 }).await.unwrap();
    let mut config = lab::script("third", "ps | grep -c 'slee[p]' || true");
    linux(&mut config).0.namespace_options =
        Some(NamespaceOption { pid: NamespaceMode::Pod.into(), ..Default::default() });
    assert_eq!(lab::output(&mut client, &lab, &sandbox, &pod, config).await, "0\n");

    let mut config = lab::script("target", "exec sleep 3000");
    linux(&mut config).0.namespace_options = Some(lab::namespaces());
    let target = lab::create(&mut client, &sandbox, &pod, config).await;
    lab::start(&mut client, &target).await;
    let mut config = lab::script("debug", "cat /proc/1/cmdline");
    linux(&mut config).0.namespace_options =
        Some(NamespaceOption { pid: NamespaceMode::Target.into(), target_id: target, ..Default::default() });
    let text = lab::output(&mut client, &lab, &sandbox, &pod, config).await;
    assert!(text.starts_with("sleep\u{0}3000"), "{text:?}");

    let mut config = lab::script("node", "readlink /proc/self/ns/pid");
    linux(&mut config).0.namespace_options =
        Some(NamespaceOption { pid: NamespaceMode::Node.into(), ..Default::default() });
    let own = fs::read_link("/proc/self/ns/pid").unwrap();
    let text = lab::output(&mut client, &lab, &sandbox, &pod, config).await;
    assert_eq!(text.trim(), own.to_string_lossy());
}

async fn mounts_show_and_hide(lab: Lab) {
    let shared = lab.dir.join("shared");
    fs::create_dir_all(shared.join("sub")).unwrap();
    mussel_runtime::prepare_host(&[&shared]).unwrap();
    mussel_runtime::prepare_host(&[&shared]).unwrap();
    let runtime = lab.open().await;
    let mut client = runtime.client();
    let pod = lab.sandbox_config("mounts");
    let sandbox = lab::run_sandbox(&mut client, &pod).await;
    let mount = |host: &std::path::Path, container: &str| Mount {
        host_path: host.to_string_lossy().into_owned(),
        container_path: container.into(),
        ..Default::default()
    };
    let file = lab.dir.join("file");
    fs::write(&file, "text\n").unwrap();
    std::os::unix::fs::symlink(&file, lab.dir.join("link")).unwrap();

    let mut config = lab::script(
        "main",
        "exec 2>/dev/null; cat /deep/down/file; echo x >/deep/down/file || echo fixed; touch /data/new /later/y; \
         cat /etc/hosts; ls /data",
    );
    let read_only = Mount { readonly: true, ..mount(&lab.dir.join("link"), "/deep/down/file") };
    config.mounts = vec![
        mount(&file, "/etc/hosts"),
        mount(&shared.join("sub"), "/data/inner"),
        read_only,
        mount(&shared, "/data"),
        mount(&lab.dir.join("not/yet"), "/later"),
    ];
    let text = lab::output(&mut client, &lab, &sandbox, &pod, config).await;
    assert_eq!(text, "text\nfixed\ntext\ninner\nnew\nsub\n");
    assert!(shared.join("new").exists() && lab.dir.join("not/yet/y").exists());

    let mut config = lab::script("out", "mount -t tmpfs inside /data/sub && touch /data/sub/from-inside");
    linux(&mut config).0.privileged = true;
    config.mounts =
        vec![Mount { propagation: MountPropagation::PropagationBidirectional.into(), ..mount(&shared, "/data") }];
    lab::output(&mut client, &lab, &sandbox, &pod, config).await;
    assert!(shared.join("sub/from-inside").exists(), "mounts reach the node");
    nix::mount::umount(&shared.join("sub")).unwrap();

    let mut config = lab::script("private", "true");
    config.mounts = vec![Mount {
        propagation: MountPropagation::PropagationBidirectional.into(),
        ..mount(std::path::Path::new("/proc"), "/data")
    }];
    let request = CreateContainerRequest {
        pod_sandbox_id: sandbox.clone(),
        config: Some(config),
        sandbox_config: Some(pod.clone()),
    };
    assert!(client.create_container(request).await.unwrap_err().message().contains("not on a shared mount"));

    let mut config = lab::script("image", "cat /volume/layered; touch /volume/x 2>/dev/null || echo fixed");
    config.mounts = vec![Mount {
        container_path: "/volume".into(),
        image: Some(ImageSpec { image: "busybox".into(), ..Default::default() }),
        image_sub_path: "etc".into(),
        ..Default::default()
    }];
    assert_eq!(lab::output(&mut client, &lab, &sandbox, &pod, config).await, "top\nfixed\n");
    lab::remove_sandbox(&mut client, &sandbox).await;
    nothing_left(&lab);
    nix::mount::umount2(&shared, nix::mount::MntFlags::MNT_DETACH).unwrap();
}

async fn pods_outlive_the_runtime(lab: Lab) {
    let runtime = lab.open().await;
    let mut client = runtime.client();
    let pod = lab.sandbox_config("lasting");
    let sandbox = lab::run_sandbox(&mut client, &pod).await;
    let go = lab.dir.join("go");
    fs::create_dir(&go).unwrap();
    let mut config = lab::script("main", "echo $$ up; until test -e /go/now; do sleep 0.01; done; echo bye; exit 9");
    config.mounts = vec![Mount {
        host_path: go.to_string_lossy().into_owned(),
        container_path: "/go".into(),
        ..Default::default()
    }];
    let early = lab::create(&mut client, &sandbox, &pod, config.clone()).await;
    lab::start(&mut client, &early).await;
    config.metadata.as_mut().unwrap().name = "stays".into();
    config.command[2] = "exec sleep 1000".into();
    let stays = lab::create(&mut client, &sandbox, &pod, config.clone()).await;
    lab::start(&mut client, &stays).await;
    config.metadata.as_mut().unwrap().name = "unstarted".into();
    let unstarted = lab::create(&mut client, &sandbox, &pod, config).await;
    let before = lab::status(&mut client, &stays).await;
    drop(client);
    drop(runtime);
    // While nobody looks.
    fs::write(go.join("now"), "").unwrap();
    while !lab.log("lasting", "main").contains("bye") {
        tokio::task::yield_now().await;
    }
    let runtime = lab.open().await;
    let mut client = runtime.client();
    assert_eq!(lab::wait(&mut client, &early).await.exit_code, 9);
    assert_eq!(lab::status(&mut client, &stays).await, before);
    assert_eq!(lab::exec(&mut client, &stays, "echo still").await.0, "still\n");
    lab::start(&mut client, &unstarted).await;
    client.stop_container(StopContainerRequest { container_id: stays.clone(), timeout: 0 }).await.unwrap();
    assert_eq!(lab::status(&mut client, &stays).await.exit_code, 137);
    lab::remove_sandbox(&mut client, &sandbox).await;
    nothing_left(&lab);
}

async fn a_dead_shim_takes_its_pod_along(lab: Lab) {
    let runtime = lab.open().await;
    let mut client = runtime.client();
    let pod = lab.sandbox_config("doomed");
    let sandbox = lab::run_sandbox(&mut client, &pod).await;
    let id = lab::create(&mut client, &sandbox, &pod, lab::script("main", "exec sleep 1000")).await;
    lab::start(&mut client, &id).await;
    let pid: i32 = fs::read_to_string(lab.dir.join("run/shim").join(&sandbox).join("pid")).unwrap().parse().unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL).unwrap();
    let status = lab::wait(&mut client, &id).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (255, "Unknown"));
    tokio::time::timeout(Duration::from_secs(5), async {
        while sandboxes(&mut client).await[0].state() == PodSandboxState::SandboxReady {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    lab::remove_sandbox(&mut client, &sandbox).await;
    nothing_left(&lab);
}

async fn nothing_survives_a_reboot(lab: Lab) {
    let runtime = lab.open().await;
    let mut client = runtime.client();
    let pod = lab.sandbox_config("old");
    let sandbox = lab::run_sandbox(&mut client, &pod).await;
    let id = lab::create(&mut client, &sandbox, &pod, lab::script("main", "exec sleep 1000")).await;
    lab::start(&mut client, &id).await;
    drop(client);
    drop(runtime);
    // As a reboot: the processes, mounts and the run directory are gone, and the records are of another boot.
    lab.kill_everything();
    fs::remove_dir_all(lab.dir.join("run")).unwrap();
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    for path in [
        lab.dir.join("root/sandboxes").join(&sandbox).join("sandbox.json"),
        lab.dir.join("root/containers").join(&id).join("container.json"),
    ] {
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(boot.trim()));
        fs::write(&path, text.replace(boot.trim(), "another")).unwrap();
    }
    fs::create_dir_all(lab.dir.join("root/containers/torn")).unwrap();
    let runtime = lab.open().await;
    let mut client = runtime.client();
    assert_eq!(sandboxes(&mut client).await[0].state(), PodSandboxState::SandboxNotready);
    let status = lab::status(&mut client, &id).await;
    assert_eq!((status.state(), status.exit_code), (ContainerState::ContainerExited, 255));
    lab::remove_sandbox(&mut client, &sandbox).await;
    nothing_left(&lab);
}

async fn a_failed_sandbox_leaves_nothing(lab: Lab) {
    let runtime = lab.open().await;
    let mut client = runtime.client();
    let mut pod = lab.sandbox_config("broken");
    pod.linux.as_mut().unwrap().sysctls = [("net.core.no_such_thing".to_owned(), "1".to_owned())].into();
    let request = RunPodSandboxRequest { config: Some(pod.clone()), ..Default::default() };
    let error = client.run_pod_sandbox(request).await.unwrap_err();
    assert!(error.message().contains("set sysctl net.core.no_such_thing"), "{error}");
    let request = RunPodSandboxRequest { config: Some(pod), runtime_handler: "gvisor".into() };
    assert!(client.run_pod_sandbox(request).await.unwrap_err().message().contains("gvisor"));
    assert!(sandboxes(&mut client).await.is_empty());
    nothing_left(&lab);
}

async fn logs_rotate(lab: Lab) {
    let runtime = lab.open().await;
    let mut client = runtime.client();
    let pod = lab.sandbox_config("log");
    let sandbox = lab::run_sandbox(&mut client, &pod).await;
    let script = "n=0; while true; do n=$((n+1)); echo $n; sleep 0.01; done";
    let id = lab::create(&mut client, &sandbox, &pod, lab::script("main", script)).await;
    lab::start(&mut client, &id).await;
    let dir = lab.dir.join("logs/log");
    while !lab.log("log", "main").contains(" F 2\n") {
        tokio::task::yield_now().await;
    }
    fs::rename(dir.join("main.log"), dir.join("main.old")).unwrap();
    client.reopen_container_log(ReopenContainerLogRequest { container_id: id.clone() }).await.unwrap();
    while lab.log("log", "main").lines().count() < 2 {
        tokio::task::yield_now().await;
    }
    client.stop_container(StopContainerRequest { container_id: id.clone(), timeout: 0 }).await.unwrap();
    let all = fs::read_to_string(dir.join("main.old")).unwrap() + &lab.log("log", "main");
    for (index, line) in all.lines().enumerate() {
        assert_eq!(line.rsplit(' ').next(), Some((index + 1).to_string().as_str()), "no line is lost");
    }
    let again = client.reopen_container_log(ReopenContainerLogRequest { container_id: id }).await;
    assert_eq!(again.unwrap_err().code(), Code::FailedPrecondition);
}

async fn many_at_once(lab: Lab) {
    let runtime = lab.open().await;
    let pods = (0..10).map(|number| {
        let (mut client, lab) = (runtime.client(), lab.clone());
        async move {
            let name = format!("pod{number}");
            let pod = lab.sandbox_config(&name);
            let sandbox = lab::run_sandbox(&mut client, &pod).await;
            let containers = (0..3).map(|index| {
                let (mut client, lab, pod, sandbox) = (client.clone(), lab.clone(), pod.clone(), sandbox.clone());
                async move {
                    let config = lab::script(&format!("c{index}"), "seq 1 2000; exit 0");
                    let text = lab::output(&mut client, &lab, &sandbox, &pod, config).await;
                    assert_eq!(text.lines().count(), 2000);
                }
            });
            futures::future::join_all(containers).await;
            lab::remove_sandbox(&mut client, &sandbox).await;
        }
    });
    let start = std::time::Instant::now();
    futures::future::join_all(pods).await;
    println!("10 pods of 3 containers: {} ms", start.elapsed().as_millis());
    nothing_left(&lab);
}
