//! Pods' networks by CNI plugins that somebody else brings (the container network interface's specification, 1.1).
//!
//! Which plugins is said by the first configuration in a folder, and it is looked for each time, so that it may come and change
//! while pods run. What a sandbox was given is kept until it is taken back, by the configuration of then.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use std::{fs, io};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;
use tokio::time;

use crate::pods::{HostPort, SandboxError, loopback_up};

/// A plugin that takes longer is killed.
const PLUGIN_TIME: Duration = Duration::from_secs(60);
const OUTPUT_BYTES_MAX: u64 = 1 << 20;
const CONFIG_BYTES_MAX: u64 = 1 << 20;
const PLUGINS_MAX: usize = 32;
/// Other runtimes' name for a pod's interface.
const INTERFACE: &str = "eth0";

pub struct Config {
    /// `/etc/cni/net.d`
    pub conf_dir: PathBuf,
    /// `/opt/cni/bin`; the first that has a plugin wins.
    pub bin_dirs: Vec<PathBuf>,
    /// What sandboxes were given; must not survive a reboot.
    pub kept_dir: PathBuf,
}

/// A sandbox that wants a network, or no longer does.
#[derive(Clone, Debug)]
pub struct Request {
    pub sandbox_id: String,
    /// A bind mount of the sandbox's network namespace. Gone when the sandbox ended by itself.
    pub netns: PathBuf,
    pub pod_namespace: String,
    pub pod_name: String,
    pub pod_uid: String,
    pub host_ports: Vec<HostPort>,
}

#[derive(Debug, thiserror::Error)]
pub enum CniError {
    /// In the words that people look for.
    #[error("cni plugin not initialized: no network config found in {}", conf_dir.display())]
    NoConfig { conf_dir: PathBuf },
    #[error("CNI config {}: {reason}", path.display())]
    Config { path: PathBuf, reason: String },
    #[error("CNI plugin {plugin:?} is in none of the folders {bin_dirs}")]
    NoPlugin { plugin: String, bin_dirs: String },
    #[error("run CNI plugin {plugin:?}")]
    Run { plugin: String, source: io::Error },
    #[error("CNI plugin {plugin:?} did not end within {} s", PLUGIN_TIME.as_secs())]
    Late { plugin: String },
    #[error("CNI plugin {plugin:?} failed ({command}): {message}")]
    Failed { plugin: String, command: &'static str, message: String },
    #[error("CNI plugin {plugin:?} gave the pod no address")]
    NoAddress { plugin: String },
    #[error("keep what the sandbox was given in {}", path.display())]
    Keep { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
}

/// A list of plugins, each as it was written down.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct NetworkConfig {
    name: String,
    version: String,
    plugins: Vec<Map<String, Value>>,
}

/// What a sandbox has.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    config: NetworkConfig,
    /// `null` while it is being made.
    result: Value,
    host_ports: Value,
}

pub struct Cni {
    config: Config,
}

impl Cni {
    pub fn new(config: Config) -> Self {
        Self { config }
    }

    /// Whether pods can be connected.
    ///
    /// # Errors
    /// Why not.
    pub fn status(&self) -> Result<(), CniError> {
        let config = self.load()?;
        config.plugins.iter().try_for_each(|plugin| self.find(kind(plugin)).map(drop))
    }

    /// Connects the sandbox, and returns its addresses. Asked again, it says what it said.
    ///
    /// # Errors
    /// As the plugins say; what they made until then is taken back.
    pub async fn add(&self, request: &Request) -> Result<Vec<IpAddr>, CniError> {
        if let Some(kept) = self.kept(&request.sandbox_id)
            && !kept.result.is_null()
        {
            return Ok(addresses(&kept.result));
        }
        let config = self.load()?;
        let host_ports = port_mappings(&request.host_ports);
        let mut kept = Kept { config, result: Value::Null, host_ports };
        // Before the first plugin runs: after a crash it is known what to take back.
        self.keep(&request.sandbox_id, &kept)?;
        match self.add_all(request, &kept).await {
            Ok(result) => {
                let given = addresses(&result);
                kept.result = result;
                self.keep(&request.sandbox_id, &kept)?;
                Ok(given)
            }
            Err(error) => {
                if let Err(left) = self.del(request).await {
                    tracing::warn!(sandbox = request.sandbox_id, error = %left, "a network that failed is not taken back yet");
                }
                Err(error)
            }
        }
    }

    async fn add_all(&self, request: &Request, kept: &Kept) -> Result<Value, CniError> {
        loopback_up(&request.netns).await?;
        let mut result = Value::Null;
        for plugin in &kept.config.plugins {
            let input = input(&kept.config, plugin, &result, &kept.host_ports);
            let text = self.run("ADD", plugin, request, &input).await?;
            result = serde_json::from_slice(&text).map_err(|error| CniError::Failed {
                plugin: kind(plugin).to_owned(),
                command: "ADD",
                message: format!("its answer is not JSON: {error}"),
            })?;
        }
        if addresses(&result).is_empty() {
            let plugin = kept.config.plugins.last().map(|plugin| kind(plugin).to_owned()).unwrap_or_default();
            return Err(CniError::NoAddress { plugin });
        }
        Ok(result)
    }

    /// Takes back what [`Cni::add`] gave. A repeat succeeds.
    ///
    /// # Errors
    /// As the plugins say; all of them are asked first.
    pub async fn del(&self, request: &Request) -> Result<(), CniError> {
        let Some(kept) = self.kept(&request.sandbox_id) else { return Ok(()) };
        let mut failed = None;
        for plugin in kept.config.plugins.iter().rev() {
            let input = input(&kept.config, plugin, &kept.result, &kept.host_ports);
            if let Err(error) = self.run("DEL", plugin, request, &input).await {
                failed.get_or_insert(error);
            }
        }
        if let Some(error) = failed {
            return Err(error);
        }
        let path = self.path(&request.sandbox_id);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(CniError::Keep { path, source }),
            _ => Ok(()),
        }
    }

    fn path(&self, sandbox_id: &str) -> PathBuf {
        self.config.kept_dir.join(format!("{sandbox_id}.json"))
    }

    fn kept(&self, sandbox_id: &str) -> Option<Kept> {
        serde_json::from_slice(&fs::read(self.path(sandbox_id)).ok()?).ok()
    }

    fn keep(&self, sandbox_id: &str, kept: &Kept) -> Result<(), CniError> {
        let path = self.path(sandbox_id);
        let written = fs::create_dir_all(&self.config.kept_dir).and_then(|()| {
            let aside = path.with_extension("new");
            fs::write(&aside, serde_json::to_vec(kept)?)?;
            fs::rename(&aside, &path)
        });
        written.map_err(|source| CniError::Keep { path, source })
    }

    /// The first configuration of the folder, in the order of their names.
    fn load(&self) -> Result<NetworkConfig, CniError> {
        let none = || CniError::NoConfig { conf_dir: self.config.conf_dir.clone() };
        let entries = fs::read_dir(&self.config.conf_dir).map_err(|_| none())?;
        let is_config =
            |path: &PathBuf| path.extension().is_some_and(|end| end == "conflist" || end == "conf" || end == "json");
        let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(is_config).collect();
        files.sort();
        let path = files.into_iter().next().ok_or_else(none)?;
        let read = |path: &Path| {
            if fs::metadata(path)?.len() > CONFIG_BYTES_MAX {
                return Err(io::Error::other("the file is too long"));
            }
            fs::read(path)
        };
        let text = read(&path).map_err(|error| CniError::Config { path: path.clone(), reason: error.to_string() })?;
        parse(&text).map_err(|reason| CniError::Config { path, reason })
    }

    fn find(&self, plugin: &str) -> Result<PathBuf, CniError> {
        let found = self.config.bin_dirs.iter().map(|dir| dir.join(plugin)).find(|path| path.is_file());
        found.ok_or_else(|| CniError::NoPlugin { plugin: plugin.to_owned(), bin_dirs: self.bin_dirs() })
    }

    fn bin_dirs(&self) -> String {
        let dirs: Vec<String> = self.config.bin_dirs.iter().map(|dir| dir.display().to_string()).collect();
        dirs.join(":")
    }

    /// Runs one plugin, and returns what it printed.
    async fn run(
        &self,
        command: &'static str,
        plugin: &Map<String, Value>,
        request: &Request,
        input: &Value,
    ) -> Result<Vec<u8>, CniError> {
        let plugin = kind(plugin).to_owned();
        let path = self.find(&plugin)?;
        let fail = |source| CniError::Run { plugin: plugin.clone(), source };
        let gone = command == "DEL" && !request.netns.exists();
        let args = format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={};K8S_POD_UID={}",
            request.pod_namespace, request.pod_name, request.sandbox_id, request.pod_uid
        );
        let mut child = Command::new(path)
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", &request.sandbox_id)
            .env("CNI_NETNS", if gone { Path::new("") } else { &request.netns })
            .env("CNI_IFNAME", INTERFACE)
            .env("CNI_ARGS", args)
            .env("CNI_PATH", self.bin_dirs())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(fail)?;
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let feed = async {
            if let Some(mut stdin) = stdin {
                // When the plugin stops reading, what it prints tells why.
                let _ = stdin.write_all(input.to_string().as_bytes()).await;
            }
        };
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let ended = time::timeout(PLUGIN_TIME, async {
            let reading = async {
                match stdout {
                    Some(stdout) => stdout.take(OUTPUT_BYTES_MAX).read_to_end(&mut out).await,
                    None => Ok(0),
                }
            };
            let complaining = async {
                match stderr {
                    Some(stderr) => stderr.take(OUTPUT_BYTES_MAX).read_to_end(&mut err).await,
                    None => Ok(0),
                }
            };
            let ((), read, complained) = tokio::join!(feed, reading, complaining);
            read?;
            complained?;
            child.wait().await
        });
        let Ok(ended) = ended.await else { return Err(CniError::Late { plugin }) };
        if ended.map_err(fail)?.success() {
            return Ok(out);
        }
        // An error is JSON on standard output, if the plugin knows its manners.
        let said: Option<Value> = serde_json::from_slice(&out).ok();
        let message = said.as_ref().and_then(|said| said.get("msg")?.as_str()).map(str::to_owned);
        let message = message.unwrap_or_else(|| String::from_utf8_lossy(&err).trim().to_owned());
        Err(CniError::Failed { plugin, command, message })
    }
}

fn kind(plugin: &Map<String, Value>) -> &str {
    plugin.get("type").and_then(Value::as_str).unwrap_or_default()
}

/// Reads a list of plugins, or a single one.
fn parse(text: &[u8]) -> Result<NetworkConfig, String> {
    let mut config: Map<String, Value> = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    let field = |config: &Map<String, Value>, name: &str| config.get(name).and_then(Value::as_str).map(str::to_owned);
    let name = field(&config, "name").filter(|name| !name.is_empty()).ok_or("it has no name")?;
    let version = field(&config, "cniVersion").unwrap_or_else(|| "0.2.0".to_owned());
    let plugins = match config.remove("plugins") {
        Some(plugins) => serde_json::from_value(plugins).map_err(|error| format!("plugins: {error}"))?,
        None => vec![config],
    };
    if plugins.is_empty() || plugins.len() > PLUGINS_MAX {
        return Err(format!("it has {} plugins", plugins.len()));
    }
    // The type becomes the name of a file that is run.
    if let Some(plugin) = plugins.iter().find(|plugin| kind(plugin).is_empty() || kind(plugin).contains('/')) {
        return Err(format!("{:?} is no type of a plugin", kind(plugin)));
    }
    Ok(NetworkConfig { name, version, plugins })
}

/// What a plugin is told on its standard input.
fn input(config: &NetworkConfig, plugin: &Map<String, Value>, previous: &Value, host_ports: &Value) -> Value {
    let mut input = plugin.clone();
    input.insert("name".to_owned(), json!(config.name));
    input.insert("cniVersion".to_owned(), json!(config.version));
    if !previous.is_null() {
        input.insert("prevResult".to_owned(), previous.clone());
    }
    // What a plugin says to be capable of is passed on by what it is run with.
    let capabilities = input.remove("capabilities");
    let capable = |name: &str| capabilities.as_ref().and_then(|all| all.get(name)?.as_bool()).unwrap_or(false);
    if capable("portMappings") && host_ports.as_array().is_some_and(|ports| !ports.is_empty()) {
        input.insert("runtimeConfig".to_owned(), json!({"portMappings": host_ports}));
    }
    Value::Object(input)
}

fn port_mappings(host_ports: &[HostPort]) -> Value {
    let mapping = |port: &HostPort| {
        let mut mapping = BTreeMap::from([
            ("hostPort", json!(port.host_port)),
            ("containerPort", json!(port.container_port)),
            ("protocol", json!(port.protocol.as_str())),
        ]);
        mapping.extend(port.host_ip.map(|ip| ("hostIP", json!(ip))));
        json!(mapping)
    };
    host_ports.iter().map(mapping).collect()
}

/// The addresses of a result, in the form of version 1 or 0.3; 0.2 had `ip4`.
fn addresses(result: &Value) -> Vec<IpAddr> {
    let listed = result.get("ips").and_then(Value::as_array).into_iter().flatten();
    let old = ["ip4", "ip6"].into_iter().filter_map(|family| result.get(family)?.get("ip"));
    let texts = listed.filter_map(|ip| ip.get("address")).chain(old).filter_map(Value::as_str);
    texts.filter_map(|text| text.split('/').next()?.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::pods::Protocol;

    fn cni(dir: &Path) -> Cni {
        let config = Config {
            conf_dir: dir.join("conf"),
            bin_dirs: vec![dir.join("none"), dir.join("bin")],
            kept_dir: dir.join("kept"),
        };
        fs::create_dir_all(&config.conf_dir).unwrap();
        fs::create_dir_all(dir.join("bin")).unwrap();
        Cni::new(config)
    }

    /// A plugin that notes how it was called, and answers.
    fn plugin(dir: &Path, name: &str, answer: &str, code: i32) {
        let path = dir.join("bin").join(name);
        let script = format!(
            "#!/bin/sh\n{{ echo {name} $CNI_COMMAND $CNI_IFNAME; cat; echo; }} >> {}\necho '{answer}'\nexit {code}\n",
            dir.join("calls").display()
        );
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn request() -> Request {
        let port = HostPort { protocol: Protocol::Tcp, host_port: 8080, container_port: 80, host_ip: None };
        Request {
            sandbox_id: "s1".to_owned(),
            netns: "/proc/self/ns/net".into(),
            pod_namespace: "default".to_owned(),
            pod_name: "p".to_owned(),
            pod_uid: "u".to_owned(),
            host_ports: vec![port],
        }
    }

    const LIST: &str = r#"{"cniVersion": "1.0.0", "name": "net", "plugins": [
        {"type": "first", "mtu": 1400}, {"type": "second", "capabilities": {"portMappings": true}}]}"#;

    #[test]
    fn without_a_config_it_says_what_people_look_for() {
        let dir = tempfile::tempdir().unwrap();
        let cni = cni(dir.path());
        assert!(cni.status().unwrap_err().to_string().starts_with("cni plugin not initialized"));
        fs::write(dir.path().join("conf/20-net.conflist"), LIST).unwrap();
        assert!(matches!(cni.status(), Err(CniError::NoPlugin { plugin, .. }) if plugin == "first"));
        plugin(dir.path(), "first", "", 0);
        plugin(dir.path(), "second", "", 0);
        cni.status().unwrap();
        fs::write(dir.path().join("conf/10-bad.conf"), r#"{"name": "x", "type": "../sh"}"#).unwrap();
        assert!(matches!(cni.status(), Err(CniError::Config { .. })));
    }

    #[tokio::test]
    async fn plugins_are_asked_in_order_and_taken_back_in_reverse() {
        let dir = tempfile::tempdir().unwrap();
        let cni = cni(dir.path());
        fs::write(dir.path().join("conf/net.conflist"), LIST).unwrap();
        let result = r#"{"cniVersion": "1.0.0", "ips": [{"address": "10.9.0.7/24"}, {"address": "fd00::7/64"}]}"#;
        plugin(dir.path(), "first", result, 0);
        plugin(dir.path(), "second", result, 0);
        let given = cni.add(&request()).await.unwrap();
        assert_eq!(given, ["10.9.0.7", "fd00::7"].map(|ip| ip.parse::<IpAddr>().unwrap()));
        assert_eq!(cni.add(&request()).await.unwrap(), given, "once only");
        // Another configuration is for new sandboxes.
        fs::remove_file(dir.path().join("conf/net.conflist")).unwrap();
        cni.del(&request()).await.unwrap();
        cni.del(&request()).await.unwrap();
        let calls = fs::read_to_string(dir.path().join("calls")).unwrap();
        let (names, inputs): (Vec<&str>, Vec<&str>) =
            calls.lines().filter(|line| !line.is_empty()).partition(|line| !line.starts_with('{'));
        assert_eq!(names, ["first ADD eth0", "second ADD eth0", "second DEL eth0", "first DEL eth0"]);
        let inputs: Vec<Value> = inputs.iter().map(|input| serde_json::from_str(input).unwrap()).collect();
        assert_eq!(inputs[0], json!({"cniVersion": "1.0.0", "name": "net", "type": "first", "mtu": 1400}));
        let previous: Value = serde_json::from_str(result).unwrap();
        assert_eq!(inputs[1]["prevResult"], previous);
        let mapped = json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]);
        assert_eq!(inputs[1]["runtimeConfig"]["portMappings"], mapped);
        assert_eq!(inputs[3]["prevResult"], previous);
    }

    #[tokio::test]
    async fn a_failure_is_told_in_the_plugins_words_and_taken_back() {
        let dir = tempfile::tempdir().unwrap();
        let cni = cni(dir.path());
        fs::write(dir.path().join("conf/net.conf"), r#"{"cniVersion": "0.4.0", "name": "n", "type": "only"}"#).unwrap();
        plugin(dir.path(), "only", r#"{"code": 11, "msg": "no more addresses"}"#, 1);
        let error = cni.add(&request()).await.unwrap_err();
        assert!(error.to_string().contains("no more addresses"), "{error}");
        assert!(fs::read_to_string(dir.path().join("calls")).unwrap().contains("only DEL"));
    }
}
