//! Values that look like what an API server stores: most of the words are the same in all objects, and names, ids, times,
//! addresses and digests are not. Both that are compared get the same ones.

use bytes::Bytes;

pub const LEASE_BYTES: usize = 512;
pub const OBJECT_BYTES: usize = 2048;

/// Random by xorshift, the same for the same seed.
struct Chance(u64);

impl Chance {
    fn new(seed: u64) -> Self {
        // Seeds that differ little must not begin alike.
        let mut chance = Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        chance.next();
        chance
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 11) % n
    }

    fn uid(&mut self) -> String {
        let (high, low) = (self.next(), self.next());
        format!(
            "{:08x}-{:04x}-4{:03x}-a{:03x}-{:012x}",
            high >> 32,
            high >> 16 & 0xffff,
            high & 0xfff,
            low >> 52,
            low & 0xffff_ffff_ffff
        )
    }

    fn time(&mut self) -> String {
        let [day, hour, minute, second] = [30, 24, 60, 60].map(|n| self.below(n));
        format!("2026-11-{:02}T{hour:02}:{minute:02}:{second:02}", day + 1)
    }
}

/// Fills `text` up to `bytes` with letters that do not repeat, and ends it with `end`.
fn pad(mut text: String, chance: &mut Chance, end: &str, bytes: usize) -> Bytes {
    while text.len() < bytes - end.len() {
        text.push(char::from(b'a' + chance.below(26) as u8));
    }
    text.push_str(end);
    assert_eq!(text.len(), bytes);
    text.into()
}

/// A node's lease.
pub fn lease(seed: u64) -> Bytes {
    let mut chance = Chance::new(seed);
    let node = format!("node-{:05}", chance.below(100_000));
    let (uid, owner) = (chance.uid(), chance.uid());
    let (created, renewed) = (chance.time(), chance.time());
    let micros = chance.below(1_000_000);
    let text = format!(
        r#"{{"apiVersion":"coordination.k8s.io/v1","kind":"Lease","metadata":{{"name":"{node}","namespace":"kube-node-lease","uid":"{uid}","creationTimestamp":"{created}Z","ownerReferences":[{{"apiVersion":"v1","kind":"Node","name":"{node}","uid":"{owner}"}}]}},"spec":{{"holderIdentity":"{node}","leaseDurationSeconds":40,"renewTime":"{renewed}.{micros:06}Z","note":""#
    );
    pad(text, &mut chance, r#""}}"#, LEASE_BYTES)
}

/// A pod of a Deployment.
pub fn pod(seed: u64) -> Bytes {
    let mut chance = Chance::new(seed);
    let hash = format!("{:09x}", chance.below(1 << 36));
    let (uid, owner, created, started) = (chance.uid(), chance.uid(), chance.time(), chance.time());
    let suffix = format!("{:05x}", chance.below(1 << 20));
    let mut text = format!(
        r#"{{"apiVersion":"v1","kind":"Pod","metadata":{{"name":"object-{hash}-{suffix}","generateName":"object-{hash}-","namespace":"default","uid":"{uid}","creationTimestamp":"{created}Z","labels":{{"app":"object","pod-template-hash":"{hash}"}},"ownerReferences":[{{"apiVersion":"apps/v1","kind":"ReplicaSet","name":"object-{hash}","uid":"{owner}","controller":true,"blockOwnerDeletion":true}}]}},"spec":{{"nodeName":"node-{}","containers":["#,
        chance.below(100)
    );
    for container in 0..2 {
        text.push_str(&format!(
            r#"{{"name":"c{container}","image":"registry.example.com/team/object@sha256:{:016x}{:016x}{:016x}{:016x}","imagePullPolicy":"IfNotPresent","resources":{{"requests":{{"cpu":"{}m","memory":"{}Mi"}}}},"terminationMessagePath":"/dev/termination-log","terminationMessagePolicy":"File","env":[{{"name":"TOKEN","value":"{:016x}"}}]}}"#,
            chance.next(),
            chance.next(),
            chance.next(),
            chance.next(),
            chance.below(1000),
            chance.below(512),
            chance.next(),
        ));
        text.push_str(if container == 0 { "," } else { "" });
    }
    let addresses = [0; 4].map(|_: u8| chance.below(256));
    text.push_str(&format!(
        r#"],"restartPolicy":"Always","dnsPolicy":"ClusterFirst","serviceAccountName":"default","schedulerName":"default-scheduler"}},"status":{{"phase":"Running","conditions":[{{"type":"Ready","status":"True","lastTransitionTime":"{started}Z"}}],"podIP":"10.42.{}.{}","hostIP":"192.168.{}.{}","startTime":"{started}Z","message":""#,
        addresses[0], addresses[1], addresses[2], addresses[3],
    ));
    pad(text, &mut chance, r#""}}"#, OBJECT_BYTES)
}

/// The `n`th state of one lease, which is renewed every 10 s.
pub fn renewal(n: u64) -> Bytes {
    let (minute, second, micros) = (n / 6 % 60, n * 10 % 60, n * 7919 % 1_000_000);
    format!(
        r#"{{"apiVersion":"coordination.k8s.io/v1","kind":"Lease","metadata":{{"name":"node-1","namespace":"kube-node-lease","uid":"2f1c4c52-6f0c-4f5a-9a53-0d5e9a3f7c11","creationTimestamp":"2026-11-26T15:00:00Z","ownerReferences":[{{"apiVersion":"v1","kind":"Node","name":"node-1","uid":"8d0f2a7e-31a4-4e52-b1a7-5e0f4f3f9a20"}}],"managedFields":[{{"manager":"mussel","operation":"Update","apiVersion":"coordination.k8s.io/v1","time":"2026-11-26T15:{minute:02}:{second:02}Z","fieldsType":"FieldsV1"}}]}},"spec":{{"holderIdentity":"node-1","leaseDurationSeconds":40,"renewTime":"2026-11-26T15:{minute:02}:{second:02}.{micros:06}Z"}}}}"#
    )
    .into()
}
