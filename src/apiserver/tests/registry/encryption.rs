//! Encryption at rest: what lies in the store, who can read it, and how keys are changed under those who use them.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use mussel_apiserver::encryption::{RotationError, Vault};
use mussel_store::{Freshness, Txn};
use serde_json::{Value, json};

use crate::support::{Cluster, config_map};

const SECRETS: &str = "/api/v1/namespaces/default/secrets";
const PLAIN: &str = "correct horse battery staple";

/// Seals with a word that both sides must know, and keeps its file in memory.
#[derive(Debug, Default)]
struct TestVault {
    token: Mutex<String>,
    file: Mutex<Option<String>>,
}

impl TestVault {
    fn new(token: &str) -> Arc<Self> {
        Arc::new(Self { token: Mutex::new(token.to_owned()), file: Mutex::default() })
    }
}

impl Vault for TestVault {
    fn seal(&self, plain: &[u8]) -> Result<Vec<u8>, String> {
        Ok(format!("{}:{}", self.token.lock().unwrap(), STANDARD.encode(STANDARD.encode(plain))).into_bytes())
    }

    fn open(&self, sealed: &[u8]) -> Result<Vec<u8>, String> {
        let text = String::from_utf8(sealed.to_vec()).unwrap();
        let (token, rest) = text.split_once(':').unwrap();
        if token != *self.token.lock().unwrap() {
            return Err("sealed with another token".to_owned());
        }
        Ok(STANDARD.decode(STANDARD.decode(rest).unwrap()).unwrap())
    }

    fn kept(&self) -> Result<Option<String>, String> {
        Ok(self.file.lock().unwrap().clone())
    }

    fn keep(&self, configuration: &str) -> Result<(), String> {
        *self.file.lock().unwrap() = Some(configuration.to_owned());
        Ok(())
    }
}

async fn encrypted() -> (Cluster, Arc<TestVault>) {
    let vault = TestVault::new("t");
    let given = Arc::clone(&vault);
    let cluster = Cluster::start_with(
        |config| config,
        |config| {
            config.vault = Some(given);
            config.secrets_encryption = true;
        },
    )
    .await;
    (cluster, vault)
}

fn secret(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "labels": {"a": "b"}},
        "data": {"password": STANDARD.encode(PLAIN)}})
}

fn key(name: &str) -> Bytes {
    format!("/registry/secrets/default/{name}").into()
}

impl Cluster {
    async fn stored(&self, name: &str) -> Bytes {
        self.store.snapshot(Freshness::Local).await.unwrap().get(&key(name)).unwrap().value.clone()
    }

    /// Writes past the API.
    async fn put_raw(&self, name: &str, value: Bytes) {
        self.store.commit(Txn { puts: vec![(key(name), value)], ..Txn::default() }).await.unwrap();
    }

    async fn stage(&self, wanted: &str) {
        for _ in 0..400 {
            if self.server.encryption().status().await.unwrap().stage == wanted {
                return;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        panic!("{:?}, not {wanted}", self.server.encryption().status().await);
    }
}

fn contains(haystack: &[u8], needle: &str) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle.as_bytes())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_store_never_sees_a_secret_and_clients_never_see_a_cipher() {
    let (cluster, vault) = encrypted().await;
    let mut events = cluster.watch(&format!("{SECRETS}?watch=1&labelSelector=a=b")).await;
    cluster.post(SECRETS, secret("a")).await.ok();
    cluster.post("/api/v1/namespaces/default/configmaps", config_map("a", PLAIN)).await.ok();
    for (found, versioned) in cluster.store.snapshot(Freshness::Local).await.unwrap().range(b"", b"") {
        if found.starts_with(b"/registry/configmaps/") {
            continue;
        }
        assert!(!contains(&versioned.value, PLAIN) && !contains(&versioned.value, &STANDARD.encode(PLAIN)));
        let name = String::from_utf8_lossy(found);
        assert_eq!(versioned.value.starts_with(b"k8s:enc:aesgcm:v2:aesgcmkey:"), name.contains("/secrets/"), "{name}");
    }
    assert!(vault.kept().unwrap().unwrap().contains("aesgcmkey"));

    let password = |object: &Value| object["data"]["password"].clone();
    let expected = json!(STANDARD.encode(PLAIN));
    assert_eq!(password(&cluster.get(&format!("{SECRETS}/a")).await.ok()), expected);
    for query in
        ["", "?labelSelector=a=b", "?fieldSelector=metadata.name=a", "?resourceVersion=0", "?fieldSelector=type=Opaque"]
    {
        let list = cluster.get(&format!("{SECRETS}{query}")).await.ok();
        assert_eq!(password(&list["items"][0]), expected, "{query}");
    }
    let patch = json!({"metadata": {"labels": {"a": "c"}}});
    cluster.patch(&format!("{SECRETS}/a"), "merge", patch).await.ok();
    for kind in ["ADDED", "DELETED"] {
        let event = events.next().await.unwrap();
        assert_eq!((event["type"].as_str().unwrap(), password(&event["object"])), (kind, expected.clone()));
    }
    let mut initial = cluster.watch(&format!("{SECRETS}?watch=1&resourceVersion=0")).await;
    assert_eq!(password(&initial.next().await.unwrap()["object"]), expected);
    cluster.delete(&format!("{SECRETS}/a"), Value::Null).await.ok();
    assert_eq!(password(&initial.next().await.unwrap()["object"]), expected, "the previous value of a deletion");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_in_another_place_or_altered_or_of_an_unknown_key_is_an_error_of_its_own() {
    let (cluster, _) = encrypted().await;
    cluster.post(SECRETS, secret("good")).await.ok();
    let mut events = cluster.watch(&format!("{SECRETS}?watch=1")).await;
    assert_eq!(events.brief().await, "ADDED good");
    let stored = cluster.stored("good").await;
    let mut altered = stored.to_vec();
    *altered.last_mut().unwrap() ^= 1;
    let unknown = [b"k8s:enc:aesgcm:v2:lost:", &stored[b"k8s:enc:aesgcm:v2:aesgcmkey:".len()..]].concat();
    for (name, value, why) in [
        ("moved", stored.clone(), "cipher: message authentication failed"),
        ("good", altered.into(), "cipher: message authentication failed"),
        (
            "lost",
            unknown.into(),
            "no matching key was found for the provided AES transformer: it was encrypted with key \"lost\"",
        ),
    ] {
        cluster.put_raw(name, value).await;
        for answer in [
            cluster.get(&format!("{SECRETS}/{name}")).await,
            cluster.delete(&format!("{SECRETS}/{name}"), Value::Null).await,
        ] {
            let (code, reason, message) = answer.refused();
            assert_eq!((code, reason.as_str()), (500, "InternalError"));
            let start =
                format!("Internal error occurred: unable to transform key \"/registry/secrets/default/{name}\": {why}");
            assert!(message.starts_with(&start), "{message}");
        }
    }
    assert_eq!(cluster.get(SECRETS).await.code, 500);
    let event = events.next().await.unwrap();
    assert_eq!((event["type"].as_str().unwrap(), event["object"]["code"].as_u64()), ("ERROR", Some(500)));
    assert!(events.next().await.is_none());
    // All else goes on.
    cluster.post(SECRETS, secret("new")).await.ok();
    cluster.get(&format!("{SECRETS}/new")).await.ok();
    cluster.get("/api/v1/namespaces/default/configmaps").await.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_rotate_under_a_watcher_and_under_another_server() {
    let (cluster, vault) = encrypted().await;
    let other_vault = TestVault::new("t");
    let given = Arc::clone(&other_vault);
    let other = cluster.another(|config| config.vault = Some(given)).await;
    for index in 0..40 {
        cluster.post(SECRETS, secret(&format!("s{index}"))).await.ok();
    }
    let before = cluster.get(SECRETS).await.ok()["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    let mut events = other.watch(&format!("{SECRETS}?watch=1&resourceVersion={before}")).await;
    cluster.server.encryption().rotate_keys().await.unwrap();
    // Written on a server that may not have heard of it: never with the old key.
    other.post(SECRETS, secret("meanwhile")).await.ok();
    cluster.stage("reencrypt_finished").await;
    let status = other.server.encryption().status().await.unwrap();
    assert_eq!((status.enable, status.hash_match, status.inactive_keys.len()), (Some(true), true, 0));
    assert!(status.active_key.starts_with("aesgcmkey-2"), "{status:?}");
    let prefix = format!("k8s:enc:aesgcm:v2:{}:", status.active_key);
    for name in (0..40).map(|index| format!("s{index}")).chain(["meanwhile".to_owned()]) {
        assert!(cluster.stored(&name).await.starts_with(prefix.as_bytes()), "{name}");
        other.get(&format!("{SECRETS}/{name}")).await.ok();
    }
    // One MODIFIED for each object, with what it always held.
    let mut seen = std::collections::BTreeMap::<String, usize>::new();
    while seen.len() < 41 {
        let event = events.next().await.unwrap();
        let name = event["object"]["metadata"]["name"].as_str().unwrap().to_owned();
        assert_eq!(event["object"]["data"]["password"], json!(STANDARD.encode(PLAIN)));
        assert_eq!(event["type"] == "ADDED", name == "meanwhile", "{event}");
        *seen.entry(name).or_default() += 1;
    }
    assert!(seen.values().all(|count| *count == 1), "{seen:?}");
    assert_eq!(vault.kept().unwrap(), other_vault.kept().unwrap());
    // Who has never had the key that is gone cannot read what was before: it is too old.
    let new_vault = TestVault::new("t");
    let new = cluster.another(|config| config.vault = Some(new_vault)).await;
    let old = new.get(&format!("{SECRETS}?resourceVersionMatch=Exact&resourceVersion={before}")).await;
    assert_eq!(old.refused().0, 410);
    let mut old = new.watch(&format!("{SECRETS}?watch=1&resourceVersion={before}")).await;
    let event = old.next().await.unwrap();
    assert_eq!((event["type"].as_str().unwrap(), event["object"]["code"].as_u64()), ("ERROR", Some(410)));
    cluster.server.encryption().rotate_keys().await.unwrap();
    cluster.stage("reencrypt_finished").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_there_before_encryption_is_read_and_then_written_anew() {
    let vault = TestVault::new("t");
    let given = Arc::clone(&vault);
    let cluster = Cluster::start_with(|config| config, |config| config.vault = Some(given)).await;
    let encryption = cluster.server.encryption();
    assert_eq!(encryption.status().await.unwrap().enable, None);
    assert!(matches!(encryption.rotate_keys().await, Err(RotationError::NeverEnabled)));
    cluster.post(SECRETS, secret("a")).await.ok();
    assert!(contains(&cluster.stored("a").await, &STANDARD.encode(PLAIN)));
    encryption.enable(true).await.unwrap();
    cluster.stage("start").await;
    assert!(cluster.stored("a").await.starts_with(b"k8s:enc:"));

    encryption.enable(false).await.unwrap();
    cluster.stage("start").await;
    assert!(contains(&cluster.stored("a").await, &STANDARD.encode(PLAIN)));
    assert!(matches!(encryption.prepare(true).await, Err(RotationError::Disabled)));
    let status = encryption.status().await.unwrap();
    assert_eq!((status.enable, status.active_key.as_str(), status.inactive_keys.len()), (Some(false), "", 1));
    encryption.enable(true).await.unwrap();
    cluster.stage("start").await;

    // A plain or old value that an update leaves as it is becomes encrypted: so are objects migrated by hand.
    let object = cluster.get(&format!("{SECRETS}/a")).await.ok();
    let mut plain = object.clone();
    plain["metadata"].as_object_mut().unwrap().remove("resourceVersion");
    cluster.put_raw("a", serde_json::to_vec(&plain).unwrap().into()).await;
    cluster.put(&format!("{SECRETS}/a"), plain).await.ok();
    assert!(cluster.stored("a").await.starts_with(b"k8s:enc:"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_classic_steps_follow_each_other() {
    let (cluster, _) = encrypted().await;
    let encryption = cluster.server.encryption();
    cluster.post(SECRETS, secret("a")).await.ok();
    assert!(matches!(
        encryption.rotate(false).await,
        Err(RotationError::Stage { stage: "start", expected: "prepare" })
    ));
    encryption.prepare(false).await.unwrap();
    assert!(matches!(encryption.prepare(false).await, Err(RotationError::Stage { .. })));
    cluster.post(SECRETS, secret("b")).await.ok();
    assert!(cluster.stored("b").await.starts_with(b"k8s:enc:aesgcm:v2:aesgcmkey:"));
    encryption.rotate(false).await.unwrap();
    cluster.post(SECRETS, secret("c")).await.ok();
    assert!(cluster.stored("c").await.starts_with(b"k8s:enc:aesgcm:v2:aesgcmkey-2"));
    encryption.reencrypt(false, false).await.unwrap();
    cluster.stage("reencrypt_finished").await;
    assert_eq!(encryption.status().await.unwrap().inactive_keys.len(), 0);
    for name in ["a", "b", "c"] {
        assert!(cluster.stored(name).await.starts_with(b"k8s:enc:aesgcm:v2:aesgcmkey-2"));
    }
    encryption.prepare(false).await.unwrap();
    encryption.rotate(false).await.unwrap();
    encryption.reencrypt(false, true).await.unwrap();
    cluster.stage("start").await;
    assert_eq!(encryption.status().await.unwrap().inactive_keys.len(), 1, "--skip keeps the old key");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_the_keys_says_so_and_goes_on_when_it_gets_them() {
    let (cluster, vault) = encrypted().await;
    cluster.post(SECRETS, secret("a")).await.ok();
    let other_vault = TestVault::new("another");
    let given = Arc::clone(&other_vault);
    let other = cluster.another(|config| config.vault = Some(given)).await;
    let (code, _, message) = other.get(&format!("{SECRETS}/a")).await.refused();
    assert!(code == 500 && message.contains("\"aesgcmkey\""), "{message}");
    let (code, _, message) = other.post(SECRETS, secret("b")).await.refused();
    assert!(code == 500 && message.contains("keys in force cannot be had: sealed with another token"), "{message}");
    other.post("/api/v1/namespaces/default/configmaps", config_map("b", "1")).await.ok();
    let status = other.server.encryption().status().await.unwrap();
    assert!(!status.hash_match && status.hash_error.contains("another token"), "{status:?}");
    assert!(matches!(other.server.encryption().rotate_keys().await, Err(RotationError::Locked(_))));

    // The token arrives.
    *other_vault.token.lock().unwrap() = "t".to_owned();
    other.server.encryption().reseal().await.unwrap();
    other.get(&format!("{SECRETS}/a")).await.ok();
    other.post(SECRETS, secret("b")).await.ok();

    // A new token: sealed anew by who has it, read by who gets it; who has only the file still reads.
    *vault.token.lock().unwrap() = "new".to_owned();
    cluster.server.encryption().reseal().await.unwrap();
    other.get(&format!("{SECRETS}/a")).await.ok();
    other.post(SECRETS, secret("c")).await.ok();
    let third_vault = TestVault::new("new");
    let given = Arc::clone(&third_vault);
    let third = cluster.another(|config| config.vault = Some(given)).await;
    third.get(&format!("{SECRETS}/c")).await.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_was_put_there_counts() {
    let vault = TestVault::new("t");
    let key = STANDARD.encode([7; 32]);
    let file = format!(
        "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n- resources: [secrets, configmaps]\n  \
         providers:\n  - aesgcm:\n      keys:\n      - name: mine\n        secret: {key}\n  - identity: {{}}\n"
    );
    vault.keep(&file).unwrap();
    let given = Arc::clone(&vault);
    let cluster = Cluster::start_with(
        |config| config,
        |config| {
            config.vault = Some(given);
            config.secrets_encryption = true;
        },
    )
    .await;
    cluster.post("/api/v1/namespaces/default/configmaps", config_map("a", PLAIN)).await.ok();
    let snapshot = cluster.store.snapshot(Freshness::Local).await.unwrap();
    let stored = snapshot.get(b"/registry/configmaps/default/a").unwrap();
    assert!(stored.value.starts_with(b"k8s:enc:aesgcm:v2:mine:"));
}
