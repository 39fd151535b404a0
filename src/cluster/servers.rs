//! The servers of the cluster: which live and serve the API, and which are to go.
//!
//! Every server says in the ConfigMap `kube-system/mussel-servers` what it does. The one that leads keeps the endpoints of
//! `default/kubernetes` to those that live, removes members whose Node was deleted, and hands leadership on when it may
//! not run what only the leader runs. Nothing is written while nothing changes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use k8s_openapi::api::core::v1::{ConfigMap, Node};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use mussel_client::{Informer, LeaderGate};
use mussel_store::{MemberStatus, Store};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time;
use tokio_util::sync::CancellationToken;

const NAMESPACE: &str = "kube-system";
pub const CONFIG_MAP: &str = "mussel-servers";
/// Key behind a server's name when its Node has been seen. No node's name holds an underscore.
const SEEN: &str = "_node";
/// On a Node, by hand: take this server out of the group, and leave its Node.
const REMOVE: &str = "etcd.mussel.io/remove";
/// On a Node: the server that was taken out.
const REMOVED: &str = "etcd.mussel.io/removed-node-name";
/// Whether the other members answer is known by looking. A lone server has nobody to look at and does not.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A member that does not answer in so many looks leaves the endpoints.
const SILENT_LOOKS: u32 = 2;
const RETRY: Duration = Duration::from_secs(2);

/// What a server says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// Where it is reached: `ip:port`.
    pub address: String,
    pub api_server: bool,
    /// Runs what the leader runs: controllers and scheduler.
    pub controllers: bool,
    pub version: String,
}

pub struct Servers {
    pub store: Store,
    /// May everything.
    pub client: Client,
    pub nodes: Informer<Node>,
    pub records: Informer<ConfigMap>,
    pub gate: LeaderGate,
    pub name: String,
    pub record: Record,
}

impl Servers {
    /// The field selector for `records`.
    pub fn selector() -> String {
        format!("metadata.name={CONFIG_MAP}")
    }

    pub async fn run(self, stop: CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => return,
            () = self.announce() => {}
        }
        let work = |stop: CancellationToken| self.lead(stop);
        self.gate.run_while_leading(stop.clone(), work).await;
        stop.cancelled().await;
    }

    /// Says what this server does, until it is written.
    async fn announce(&self) {
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), NAMESPACE);
        let text = serde_json::to_string(&self.record).unwrap_or_default();
        loop {
            match self.write(&api, json!({ self.name.as_str(): text })).await {
                Ok(()) => return,
                Err(error) => tracing::warn!(%error, "this server is not announced yet"),
            }
            time::sleep(RETRY).await;
        }
    }

    async fn write(&self, api: &Api<ConfigMap>, data: Value) -> Result<(), kube::Error> {
        let patch = Patch::Merge(json!({"data": data}));
        match api.patch(CONFIG_MAP, &PatchParams::default(), &patch).await {
            Err(kube::Error::Api(status)) if status.code == 404 => {
                let mut map = ConfigMap::default();
                map.metadata.name = Some(CONFIG_MAP.to_owned());
                // Another server may be faster; then the patch fits.
                match api.create(&PostParams::default(), &map).await {
                    Ok(_) => {}
                    Err(kube::Error::Api(status)) if status.code == 409 => {}
                    Err(error) => return Err(error),
                }
                api.patch(CONFIG_MAP, &PatchParams::default(), &patch).await.map(drop)
            }
            other => other.map(drop),
        }
    }

    async fn lead(&self, stop: CancellationToken) {
        let (mut nodes, mut records) = (self.nodes.changes(), self.records.changes());
        tokio::select! {
            () = stop.cancelled() => return,
            () = async { self.nodes.synced().await; self.records.synced().await } => {}
        }
        let mut silent: BTreeMap<u64, u32> = BTreeMap::new();
        loop {
            let members = self.store.members();
            let failed = match self.reconcile(&members, &mut silent).await {
                Ok(()) => false,
                Err(error) => {
                    tracing::warn!(%error, "the list of servers is not up to date");
                    true
                }
            };
            let look = members.len() > 1 || failed;
            tokio::select! {
                () = stop.cancelled() => return,
                change = nodes.next() => if change.is_none() { return stop.cancelled().await },
                change = records.next() => if change.is_none() { return stop.cancelled().await },
                () = time::sleep(LOOK_EVERY), if look => {}
            }
        }
    }

    async fn reconcile(&self, members: &[MemberStatus], silent: &mut BTreeMap<u64, u32>) -> Result<(), kube::Error> {
        let records = Records::of(self.records.get(NAMESPACE, CONFIG_MAP).as_deref());
        silent.retain(|id, _| members.iter().any(|member| member.id == *id));
        for member in members {
            let looks = silent.entry(member.id).or_default();
            *looks = if member.reachable == Some(false) { looks.saturating_add(1) } else { 0 };
        }
        let lives = |member: &MemberStatus| silent.get(&member.id).is_none_or(|looks| *looks < SILENT_LOOKS);
        let own = self.store.member_id();
        let changes = self.node_changes(members, &records, own).await;
        if !changes.is_empty() {
            let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), NAMESPACE);
            self.write(&api, Value::Object(changes)).await?;
        }
        let addresses = endpoints(members, &records, lives);
        self.write_endpoints(&addresses).await?;
        if !self.record.controllers
            && let Some(successor) = successor(members, &records, own, lives)
            && let Err(error) = self.store.transfer_leadership(Some(successor)).await
        {
            tracing::debug!(%error, "leadership stays here for now");
        }
        Ok(())
    }

    /// Notes whose Nodes exist, and removes members whose Node is gone. Returns what is to be written.
    async fn node_changes(
        &self,
        members: &[MemberStatus],
        records: &Records,
        own: u64,
    ) -> serde_json::Map<String, Value> {
        let mut changes = records.of_none(members);
        // The leader last: with itself it loses the right to remove others.
        let mut ordered: Vec<_> = members.iter().collect();
        ordered.sort_by_key(|member| member.id == own);
        for member in ordered {
            let seen = records.seen.contains(&member.name);
            let node = self.nodes.get("", &member.name);
            let exists = node.is_some();
            if exists && !seen {
                changes.insert(format!("{}{SEEN}", member.name), "seen".into());
            }
            let asked = node.as_deref().is_some_and(asks_for_removal);
            if ((!exists && seen) || asked) && members.len() > 1 {
                let why = if asked { "somebody asked for it" } else { "its node was deleted" };
                tracing::info!(server = member.name, why, "the server is removed from the group");
                // Answered first: who takes itself out can write no more after that.
                if asked
                    && let Err(error) = self.annotate(&member.name, json!({REMOVE: null, REMOVED: member.name})).await
                {
                    tracing::warn!(server = member.name, %error, "the server is not removed yet");
                    continue;
                }
                match self.store.remove_member(member.id).await {
                    Ok(()) => {
                        changes.insert(format!("{}{SEEN}", member.name), Value::Null);
                        changes.insert(member.name.clone(), Value::Null);
                    }
                    Err(error) => {
                        tracing::warn!(server = member.name, %error, "the server is not removed yet");
                        if asked
                            && let Err(error) =
                                self.annotate(&member.name, json!({REMOVE: "true", REMOVED: null})).await
                        {
                            tracing::warn!(server = member.name, %error, "it has to be asked for again");
                        }
                    }
                }
            }
        }
        changes
    }

    /// With the answer the wish goes, or the server would be taken out again when it comes back.
    async fn annotate(&self, name: &str, annotations: Value) -> Result<(), kube::Error> {
        let api: Api<Node> = Api::all(self.client.clone());
        let patch = Patch::Merge(json!({"metadata": {"annotations": annotations}}));
        api.patch(name, &PatchParams::default(), &patch).await.map(drop)
    }

    async fn write_endpoints(&self, addresses: &[SocketAddr]) -> Result<(), kube::Error> {
        use k8s_openapi::api::core::v1::Endpoints;
        use k8s_openapi::api::discovery::v1::EndpointSlice;
        let Some(first) = addresses.first() else { return Ok(()) };
        let (family, port) = (if first.is_ipv4() { "IPv4" } else { "IPv6" }, first.port());
        let ips: Vec<String> =
            addresses.iter().filter(|a| a.is_ipv4() == first.is_ipv4()).map(|a| a.ip().to_string()).collect();
        let ports = json!([{"name": "https", "port": port, "protocol": "TCP"}]);
        let slice_endpoints: Vec<Value> =
            ips.iter().map(|ip| json!({"addresses": [ip], "conditions": {"ready": true}})).collect();
        let slice = json!({"addressType": family, "endpoints": slice_endpoints, "ports": ports});
        let subset_addresses: Vec<Value> = ips.iter().map(|ip| json!({"ip": ip})).collect();
        let endpoints = json!({"subsets": [{"addresses": subset_addresses, "ports": ports}]});

        let slices: Api<EndpointSlice> = Api::namespaced(self.client.clone(), "default");
        let found = slices.get("kubernetes").await?;
        if differs(&found, &slice) {
            tracing::info!(servers = ips.join(","), "servers that serve the API");
            slices.patch("kubernetes", &PatchParams::default(), &Patch::Merge(slice)).await?;
        }
        let all: Api<Endpoints> = Api::namespaced(self.client.clone(), "default");
        let found = all.get("kubernetes").await?;
        if differs(&found, &endpoints) {
            all.patch("kubernetes", &PatchParams::default(), &Patch::Merge(endpoints)).await?;
        }
        Ok(())
    }
}

fn asks_for_removal(node: &Node) -> bool {
    node.metadata.annotations.as_ref().is_some_and(|all| all.get(REMOVE).is_some_and(|value| value == "true"))
}

/// Whether an object lacks any of the fields as wanted.
fn differs(found: &impl Serialize, wanted: &Value) -> bool {
    let found = serde_json::to_value(found).unwrap_or_default();
    wanted.as_object().into_iter().flatten().any(|(field, value)| found.get(field) != Some(value))
}

/// What the ConfigMap holds.
#[derive(Debug, Default, PartialEq, Eq)]
struct Records {
    by_name: BTreeMap<String, Record>,
    seen: BTreeSet<String>,
}

impl Records {
    fn of(map: Option<&ConfigMap>) -> Self {
        let mut records = Self::default();
        for (key, value) in map.and_then(|map| map.data.as_ref()).into_iter().flatten() {
            match key.strip_suffix(SEEN) {
                Some(name) => drop(records.seen.insert(name.to_owned())),
                None => {
                    if let Ok(record) = serde_json::from_str(value) {
                        records.by_name.insert(key.clone(), record);
                    }
                }
            }
        }
        records
    }
}

impl Records {
    /// Takes away what was said by members that are none any more.
    fn of_none(&self, members: &[MemberStatus]) -> serde_json::Map<String, Value> {
        let is_none = |name: &&String| members.iter().all(|member| member.name != **name);
        let said = self.by_name.keys().filter(is_none).cloned();
        let seen = self.seen.iter().filter(is_none).map(|name| format!("{name}{SEEN}"));
        said.chain(seen).map(|key| (key, Value::Null)).collect()
    }
}

/// Where the API is served: by members that live and have said that they do.
fn endpoints(members: &[MemberStatus], records: &Records, lives: impl Fn(&MemberStatus) -> bool) -> Vec<SocketAddr> {
    let serving = members.iter().filter(|member| lives(member)).filter_map(|member| {
        let record = records.by_name.get(&member.name).filter(|record| record.api_server)?;
        record.address.parse::<SocketAddr>().ok()
    });
    let mut all: Vec<SocketAddr> = serving.collect();
    all.sort_by_key(|address| match address.ip() {
        IpAddr::V4(ip) => u128::from(u32::from(ip)),
        IpAddr::V6(ip) => u128::from(ip),
    });
    all.dedup();
    all
}

/// A voter that lives and runs what the leader runs.
fn successor(
    members: &[MemberStatus],
    records: &Records,
    own: u64,
    lives: impl Fn(&MemberStatus) -> bool,
) -> Option<u64> {
    let fits = |member: &&MemberStatus| {
        member.id != own
            && member.role == mussel_store::Role::Voter
            && lives(member)
            && records.by_name.get(&member.name).is_some_and(|record| record.controllers)
    };
    members.iter().find(fits).map(|member| member.id)
}

#[cfg(test)]
mod tests {
    use mussel_store::Role;

    use super::*;

    fn member(id: u64, name: &str) -> MemberStatus {
        MemberStatus {
            id,
            name: name.to_owned(),
            address: format!("10.0.0.{id}:6443"),
            role: Role::Voter,
            leader: id == 1,
            matched_index: None,
            lag_entries: None,
            reachable: Some(true),
        }
    }

    fn records(list: &[(&str, bool, bool)]) -> Records {
        let mut map = ConfigMap::default();
        let data = map.data.get_or_insert_default();
        for (at, (name, api_server, controllers)) in list.iter().enumerate() {
            let record = Record {
                address: format!("10.0.0.{}:6443", at + 1),
                api_server: *api_server,
                controllers: *controllers,
                version: "v1".to_owned(),
            };
            data.insert((*name).to_owned(), serde_json::to_string(&record).unwrap());
        }
        data.insert("a_node".to_owned(), "seen".to_owned());
        Records::of(Some(&map))
    }

    #[test]
    fn only_living_api_servers_are_endpoints() {
        let members = [member(1, "a"), member(2, "b"), member(3, "c"), member(4, "d")];
        let records = records(&[("a", true, true), ("b", false, true), ("c", true, true)]);
        let show = |lives: &dyn Fn(&MemberStatus) -> bool| {
            endpoints(&members, &records, lives).iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(show(&|_| true), ["10.0.0.1:6443", "10.0.0.3:6443"], "d has not said what it does");
        assert_eq!(show(&|member| member.id != 1), ["10.0.0.3:6443"]);
        assert!(records.seen.contains("a") && !records.by_name.contains_key("a_node"));
    }

    #[test]
    fn what_a_removed_member_said_goes() {
        let records = records(&[("a", true, true), ("b", true, true)]);
        let names =
            |members: &[MemberStatus]| records.of_none(members).into_iter().map(|(key, _)| key).collect::<Vec<_>>();
        assert_eq!(names(&[member(1, "a"), member(2, "b")]), Vec::<String>::new());
        assert_eq!(names(&[member(2, "b")]), ["a", "a_node"]);
    }

    #[test]
    fn leadership_goes_to_who_runs_controllers() {
        let members = [member(1, "a"), member(2, "b"), member(3, "c")];
        let records = records(&[("a", true, false), ("b", true, false), ("c", true, true)]);
        assert_eq!(successor(&members, &records, 1, |_| true), Some(3));
        assert_eq!(successor(&members, &records, 1, |member| member.id != 3), None);
    }
}
