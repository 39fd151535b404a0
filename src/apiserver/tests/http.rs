//! The HTTP side as clients meet it: TLS, who they are, what they may, discovery, health.

mod support;

use bytes::Bytes;
use http_body_util::Full;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Secret, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, Role, RoleBinding};
use kube::api::{Api, ListParams, ObjectMeta, PostParams};
use mussel_apiserver::UserInfo;
use serde_json::json;
use support::{Ca, TestServer, json};

fn get(path: &str) -> http::Request<Full<Bytes>> {
    http::Request::get(path).body(Full::default()).unwrap()
}

fn code(error: kube::Error) -> (u16, String) {
    match error {
        kube::Error::Api(status) => (status.code, status.message),
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn health_version_and_metrics_answer() {
    let server = TestServer::start().await;
    for path in ["/livez", "/readyz", "/healthz", "/livez/ping", "/readyz/etcd"] {
        for http2 in [false, true] {
            let (parts, body) = server.raw(None, http2, get(path)).await;
            // Below the top, only users may look.
            if path.matches('/').count() == 2 {
                assert_eq!(parts.status, 403, "{path}");
            } else {
                assert_eq!((parts.status.as_u16(), &body[..]), (200, &b"ok"[..]), "{path}");
                assert!(parts.headers.contains_key("audit-id"));
            }
        }
    }
    let (status, body) = server.get("admin", &["system:masters"], "/readyz?verbose").await;
    assert_eq!(status, 200, "{body}");
    for line in ["[+]ping ok\n", "[+]etcd ok\n", "[+]poststarthook/rbac/bootstrap-roles ok\n", "readyz check passed\n"]
    {
        assert!(body.contains(line), "{body}");
    }
    assert_eq!(server.get("admin", &["system:masters"], "/readyz/etcd").await, (200, "ok".to_owned()));
    assert_eq!(server.get("admin", &["system:masters"], "/readyz/nope").await.0, 404);
    let (_, version) = server.get("nobody", &[], "/version").await;
    assert!(json(&version)["gitVersion"].as_str().unwrap().starts_with("v1.36."), "{version}");
    let (status, metrics) = server.get("admin", &["system:masters"], "/metrics").await;
    assert_eq!(status, 200);
    assert!(metrics.contains("apiserver_request_total{verb=\"GET\""), "{metrics}");
    assert_eq!(server.get("nobody", &[], "/metrics").await.0, 403);
    assert_eq!(server.get("admin", &["system:masters"], "/nope").await, (404, "404 page not found\n".to_owned()));
    server.stop().await;
}

#[tokio::test]
async fn certificates_tell_who_asks() {
    let server = TestServer::start().await;
    let whoami = |identity| {
        let body = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}).to_string();
        let request = http::Request::post("/apis/authentication.k8s.io/v1/selfsubjectreviews")
            .header("content-type", "application/json")
            .body(Full::from(body))
            .unwrap();
        let server = &server;
        async move {
            let (parts, body) = server.raw(identity, false, request).await;
            (parts.status.as_u16(), json(&String::from_utf8_lossy(&body)))
        }
    };
    let (status, review) = whoami(Some(server.ca.issue("ann", &["ops"], &[]))).await;
    assert_eq!(status, 201, "{review}");
    let user: UserInfo = serde_json::from_value(review["status"]["userInfo"].clone()).unwrap();
    assert_eq!(user.name, "ann");
    for group in ["ops", "system:authenticated"] {
        assert!(user.in_group(group), "{user:?}");
    }
    // A stranger's certificate is refused, not taken for nobody's.
    let stranger = Ca::new("stranger");
    let (status, body) = whoami(Some(stranger.issue("system:admin", &["system:masters"], &[]))).await;
    assert_eq!((status, body["reason"].as_str()), (401, Some("Unauthorized")), "{body}");
    // So is one whose issuer only has the right name.
    let double = Ca::new("test-ca");
    assert_eq!(whoami(Some(double.issue("system:admin", &["system:masters"], &[]))).await.0, 401);
    // Without any, one is anonymous.
    let (status, body) = whoami(None).await;
    assert_eq!(status, 403);
    assert_eq!(
        body["message"],
        "selfsubjectreviews.authentication.k8s.io is forbidden: User \"system:anonymous\" cannot create resource \
         \"selfsubjectreviews\" in API group \"authentication.k8s.io\" at the cluster scope"
    );
    server.stop().await;
}

#[tokio::test]
async fn the_front_proxy_is_believed_and_nobody_else() {
    let server = TestServer::start().await;
    let ask = |identity: (String, String)| {
        let request = http::Request::get("/api/v1/nodes")
            .header("x-remote-user", "ann")
            .header("x-remote-group", "system:masters")
            .body(Full::default())
            .unwrap();
        let server = &server;
        async move { server.raw(Some(identity), false, request).await.0.status.as_u16() }
    };
    assert_eq!(ask(server.front_proxy_ca.issue("front-proxy", &[], &[])).await, 200);
    assert_eq!(ask(server.front_proxy_ca.issue("other", &[], &[])).await, 401);
    assert_eq!(ask(server.ca.issue("front-proxy", &[], &[])).await, 403);
    server.stop().await;
}

#[tokio::test]
async fn bearer_tokens_hold_only_while_what_they_are_bound_to_exists() {
    let server = TestServer::start().await;
    let accounts: Api<ServiceAccount> = Api::namespaced(server.admin(), "default");
    let account = ServiceAccount {
        metadata: ObjectMeta { name: Some("bot".into()), ..Default::default() },
        ..Default::default()
    };
    accounts.create(&PostParams::default(), &account).await.unwrap();
    let request = kube::core::Request::new("/api/v1/namespaces/default/serviceaccounts");
    let body = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
        "spec": {"audiences": [], "expirationSeconds": 3600}});
    let create = request.create_subresource("token", "bot", &PostParams::default(), body.to_string().into_bytes());
    let answer: serde_json::Value = server.admin().request(create.unwrap()).await.unwrap();
    let token = answer["status"]["token"].as_str().unwrap().to_owned();

    let maps: Api<ConfigMap> = Api::namespaced(server.token_client(&token), "default");
    let refused = code(maps.list(&ListParams::default()).await.unwrap_err());
    assert_eq!(
        refused,
        (
            403,
            "configmaps is forbidden: User \"system:serviceaccount:default:bot\" cannot list resource \"configmaps\" \
             in API group \"\" in the namespace \"default\""
                .to_owned()
        )
    );
    let broken = format!("{}x", &token[..token.len() - 1]);
    let maps: Api<ConfigMap> = Api::namespaced(server.token_client(&broken), "default");
    assert_eq!(code(maps.list(&ListParams::default()).await.unwrap_err()).0, 401);
    accounts.delete("bot", &Default::default()).await.unwrap();
    let maps: Api<ConfigMap> = Api::namespaced(server.token_client(&token), "default");
    assert_eq!(code(maps.list(&ListParams::default()).await.unwrap_err()).0, 401);
    server.stop().await;
}

#[tokio::test]
async fn bootstrap_tokens_are_users() {
    let server = TestServer::start().await;
    let secrets: Api<Secret> = Api::namespaced(server.admin(), "kube-system");
    let secret = serde_json::from_value(json!({
        "metadata": {"name": "bootstrap-token-abcdef"}, "type": "bootstrap.kubernetes.io/token",
        "stringData": {"token-id": "abcdef", "token-secret": "0123456789abcdef",
            "usage-bootstrap-authentication": "true", "auth-extra-groups": "system:bootstrappers:x"}}));
    secrets.create(&PostParams::default(), &secret.unwrap()).await.unwrap();
    for (token, status) in
        [("abcdef.0123456789abcdef", 403), ("abcdef.0123456789abcdee", 401), ("abcdeg.0123456789abcdef", 401)]
    {
        let nodes: Api<k8s_openapi::api::core::v1::Node> = Api::all(server.token_client(token));
        assert_eq!(code(nodes.list(&ListParams::default()).await.unwrap_err()).0, status, "{token}");
    }
    server.stop().await;
}

#[tokio::test]
async fn a_new_role_acts_at_once_and_a_lost_one_ceases_to() {
    let server = TestServer::start().await;
    let admin = server.admin();
    let ann = server.tls_client("ann", &[]);
    let maps: Api<ConfigMap> = Api::namespaced(ann.clone(), "default");
    assert_eq!(code(maps.list(&ListParams::default()).await.unwrap_err()).0, 403);
    let bindings: Api<RoleBinding> = Api::namespaced(admin.clone(), "default");
    let binding = json!({"metadata": {"name": "ann"}, "subjects": [{"kind": "User", "name": "ann",
        "apiGroup": "rbac.authorization.k8s.io"}],
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "admin"}});
    let binding: RoleBinding = serde_json::from_value(binding).unwrap();
    bindings.create(&PostParams::default(), &binding).await.unwrap();
    // The index follows the store; it is at most a wake-up behind.
    let mut allowed = false;
    for _ in 0..100 {
        allowed = maps.list(&ListParams::default()).await.is_ok();
        if allowed {
            break;
        }
        tokio::task::yield_now().await;
    }
    assert!(allowed, "admin is aggregated before any controller runs");
    // An admin of a namespace hands on what they hold, and no more.
    let roles: Api<Role> = Api::namespaced(ann.clone(), "default");
    let role = |resource: &str| -> Role {
        serde_json::from_value(json!({"metadata": {"name": resource},
            "rules": [{"apiGroups": [""], "resources": [resource], "verbs": ["get"]}]}))
        .unwrap()
    };
    roles.create(&PostParams::default(), &role("configmaps")).await.unwrap();
    let (status, message) = code(roles.create(&PostParams::default(), &role("nodes")).await.unwrap_err());
    assert_eq!(status, 403);
    assert!(message.contains("is attempting to grant RBAC permissions not currently held:\n{APIGroups:[\"\"], Resources:[\"nodes\"], Verbs:[\"get\"]}"), "{message}");
    assert!(bindings.get("ann").await.unwrap().metadata.uid.is_some());
    bindings.delete("ann", &Default::default()).await.unwrap();
    let mut refused = false;
    for _ in 0..100 {
        refused = maps.list(&ListParams::default()).await.is_err();
        if refused {
            break;
        }
        tokio::task::yield_now().await;
    }
    assert!(refused);
    server.stop().await;
}

#[tokio::test]
async fn default_roles_exist_and_survive_a_second_start() {
    let server = TestServer::start().await;
    let roles: Api<ClusterRole> = Api::all(server.admin());
    let names: Vec<String> =
        roles.list(&ListParams::default()).await.unwrap().items.into_iter().filter_map(|r| r.metadata.name).collect();
    for name in ["cluster-admin", "admin", "edit", "view", "system:node", "system:controller:job-controller"] {
        assert!(names.iter().any(|n| n == name), "{name}");
    }
    let before = server.store.revision();
    mussel_apiserver::bootstrap_roles::reconcile(&server.api.context().store).await.unwrap();
    assert_eq!(server.store.revision(), before);
    server.stop().await;
}

#[tokio::test]
async fn impersonation_takes_the_right_to_do_so() {
    let server = TestServer::start().await;
    let ask = |identity: (String, String), path: &str, user: &str| {
        let request = http::Request::get(path).header("impersonate-user", user).body(Full::default()).unwrap();
        let server = &server;
        async move {
            let (parts, body) = server.raw(Some(identity), true, request).await;
            (
                parts.status.as_u16(),
                json(&String::from_utf8_lossy(&body))["message"].as_str().unwrap_or_default().to_owned(),
            )
        }
    };
    let admin = || server.ca.issue("admin", &["system:masters"], &[]);
    let (status, message) = ask(admin(), "/api/v1/nodes", "bob").await;
    assert_eq!(status, 403);
    assert!(message.contains("User \"bob\" cannot list resource \"nodes\""), "{message}");
    let (status, message) = ask(server.ca.issue("ann", &[], &[]), "/api/v1/nodes", "bob").await;
    assert_eq!(status, 403);
    assert_eq!(
        message,
        "users \"bob\" is forbidden: User \"ann\" cannot impersonate resource \"users\" in API group \"\" at the \
         cluster scope"
    );
    server.stop().await;
}

#[tokio::test]
async fn discovery_lists_what_is_served() {
    let server = TestServer::start().await;
    let ask = |path: &'static str| {
        let server = &server;
        async move { json(&server.get("ann", &[], path).await.1) }
    };
    assert_eq!(ask("/api").await["versions"], json!(["v1"]));
    let core = ask("/api/v1").await;
    assert_eq!(core["groupVersion"], "v1");
    let find = |name: &str| core["resources"].as_array().unwrap().iter().find(|r| r["name"] == name).cloned();
    let pods = find("pods").unwrap();
    assert_eq!(pods["shortNames"], json!(["po"]));
    assert_eq!(pods["namespaced"], true);
    assert_eq!(pods["singularName"], "pod");
    assert_eq!(find("pods/eviction").unwrap()["group"], "policy");
    assert_eq!(find("replicationcontrollers/scale").unwrap()["kind"], "Scale");
    let groups = ask("/apis").await;
    let names: Vec<&str> = groups["groups"].as_array().unwrap().iter().filter_map(|g| g["name"].as_str()).collect();
    for group in ["apps", "batch", "rbac.authorization.k8s.io", "discovery.k8s.io", "coordination.k8s.io"] {
        assert!(names.contains(&group), "{names:?}");
    }
    assert_eq!(ask("/apis/apps").await["preferredVersion"]["groupVersion"], "apps/v1");
    assert_eq!(ask("/apis/apps/v1").await["kind"], "APIResourceList");

    let accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";
    let request = |etag: Option<&http::HeaderValue>| {
        let mut request = get("/apis");
        request.headers_mut().insert("accept", accept.parse().unwrap());
        if let Some(etag) = etag {
            request.headers_mut().insert("if-none-match", etag.clone());
        }
        request
    };
    let identity = server.ca.issue("ann", &[], &[]);
    let (parts, body) = server.raw(Some(identity.clone()), true, request(None)).await;
    let list = json(&String::from_utf8_lossy(&body));
    assert_eq!(list["kind"], "APIGroupDiscoveryList");
    let apps = list["items"].as_array().unwrap().iter().find(|g| g["metadata"]["name"] == "apps").unwrap();
    let deployments =
        apps["versions"][0]["resources"].as_array().unwrap().iter().find(|r| r["resource"] == "deployments").unwrap();
    assert_eq!(deployments["responseKind"]["kind"], "Deployment");
    let again = server.raw(Some(identity), true, request(parts.headers.get("etag"))).await;
    assert_eq!(again.0.status, 304);
    server.stop().await;
}

#[tokio::test]
async fn what_is_not_served_is_said_so() {
    let server = TestServer::start().await;
    let ask = |method: &'static str, path: &'static str, body: Vec<u8>| {
        let server = &server;
        async move {
            let identity = server.ca.issue("admin", &["system:masters"], &[]);
            let request = http::Request::builder()
                .method(method)
                .uri(path)
                .header("content-type", "application/json")
                .body(Full::from(body))
                .unwrap();
            let (parts, body) = server.raw(Some(identity), false, request).await;
            (parts.status.as_u16(), String::from_utf8_lossy(&body).into_owned())
        }
    };
    for (method, path, status) in [
        ("GET", "/api/v1/nonsense", 404),
        ("GET", "/apis/nonsense/v1/pods", 404),
        ("GET", "/api/v1/pods/x", 404),
        ("GET", "/api/v1/namespaces/default/nodes", 404),
        ("GET", "/api/v1/namespaces/default/pods/x/nonsense", 404),
        ("PUT", "/api/v1/namespaces/default/pods", 405),
        ("POST", "/api/v1/namespaces/default/pods/x", 405),
        ("DELETE", "/api/v1/pods", 405),
        ("POST", "/version", 405),
    ] {
        let (seen, body) = ask(method, path, Vec::new()).await;
        assert_eq!(seen, status, "{method} {path}: {body}");
    }
    let (status, body) = ask("POST", "/api/v1/namespaces/default/configmaps", vec![b' '; 4 << 20]).await;
    assert_eq!(status, 413);
    assert_eq!(json(&body)["message"], "Request entity too large: limit is 3145728");
    assert_eq!(json(&body)["reason"], "RequestEntityTooLarge");
    server.stop().await;
}

#[tokio::test]
async fn large_answers_are_compressed_for_who_asks() {
    let server = TestServer::start().await;
    let maps: Api<ConfigMap> = Api::namespaced(server.admin(), "default");
    let mut map =
        ConfigMap { metadata: ObjectMeta { name: Some("big".into()), ..Default::default() }, ..Default::default() };
    map.data = Some([("a".to_owned(), "x".repeat(300_000))].into());
    maps.create(&PostParams::default(), &map).await.unwrap();
    let mut request = get("/api/v1/namespaces/default/configmaps/big");
    request.headers_mut().insert("accept-encoding", "gzip".parse().unwrap());
    let identity = server.ca.issue("admin", &["system:masters"], &[]);
    let (parts, body) = server.raw(Some(identity), false, request).await;
    assert_eq!(parts.headers["content-encoding"], "gzip");
    assert!(body.len() < 20_000);
    server.stop().await;
}

#[tokio::test]
async fn a_client_in_process_passes_the_same_checks() {
    let server = TestServer::start().await;
    let namespaces: Api<Namespace> = Api::all(server.api.client("nobody", &[]));
    assert_eq!(code(namespaces.list(&ListParams::default()).await.unwrap_err()).0, 403);
    let namespaces: Api<Namespace> = Api::all(server.admin());
    assert!(namespaces.get("default").await.is_ok());
    server.stop().await;
}

#[tokio::test]
async fn openapi_is_served_by_hash() {
    let server = TestServer::start().await;
    let index = json(&server.get("ann", &[], "/openapi/v3").await.1);
    let url = index["paths"]["apis/apps/v1"]["serverRelativeURL"].as_str().unwrap().to_owned();
    assert!(index["paths"]["api/v1"].is_object());
    let identity = server.ca.issue("ann", &[], &[]);
    let (parts, body) = server.raw(Some(identity.clone()), true, get(&url)).await;
    assert_eq!(parts.status, 200);
    assert!(parts.headers["cache-control"].to_str().unwrap().contains("immutable"));
    let document = json(&String::from_utf8_lossy(&body));
    let deployment = &document["components"]["schemas"]["io.k8s.api.apps.v1.Deployment"];
    assert_eq!(deployment["x-kubernetes-group-version-kind"][0]["kind"], "Deployment");
    let mut again = get(&url);
    again.headers_mut().insert("if-none-match", parts.headers["etag"].clone());
    assert_eq!(server.raw(Some(identity.clone()), true, again).await.0.status, 304);
    let old = get("/openapi/v3/apis/apps/v1?hash=OLD");
    let (parts, _) = server.raw(Some(identity.clone()), true, old).await;
    assert_eq!((parts.status.as_u16(), parts.headers["location"].to_str().unwrap()), (301, url.as_str()));
    assert_eq!(server.get("ann", &[], "/openapi/v3/apis/none/v1").await.0, 404);
    let (status, v2) = server.get("ann", &[], "/openapi/v2").await;
    assert_eq!(status, 200);
    assert!(json(&v2)["definitions"]["io.k8s.api.core.v1.Pod"].is_object());
    let mut protobuf = get("/openapi/v2");
    let only = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";
    protobuf.headers_mut().insert("accept", only.parse().unwrap());
    let (parts, document) = server.raw(Some(identity), true, protobuf).await;
    assert_eq!(parts.status, 200);
    assert!(parts.headers["content-type"].to_str().unwrap().ends_with("+protobuf"));
    assert!(document.starts_with(b"\x0a\x032.0"), "field 1 is the version of OpenAPI");
    server.stop().await;
}

#[tokio::test]
async fn bodies_in_protobuf_are_read() {
    let server = TestServer::start().await;
    let bytes = |number: u8, value: &[u8]| [&[number << 3 | 2, value.len() as u8], value].concat();
    let type_meta = [bytes(1, b"v1"), bytes(2, b"ConfigMap")].concat();
    let metadata = [bytes(1, b"cm"), bytes(2, b""), bytes(8, b"")].concat();
    let data = [bytes(1, b"key"), bytes(2, b"value")].concat();
    let raw = [bytes(1, &metadata), bytes(2, &data)].concat();
    let body = [b"k8s\0".to_vec(), bytes(1, &type_meta), bytes(2, &raw), bytes(3, b""), bytes(4, b"")].concat();
    let send = |body: Vec<u8>| {
        let request = http::Request::post("/api/v1/namespaces/default/configmaps")
            .header("content-type", "application/vnd.kubernetes.protobuf")
            .header("accept", "application/vnd.kubernetes.protobuf,application/json")
            .body(Full::from(body))
            .unwrap();
        let identity = server.ca.issue("admin", &["system:masters"], &[]);
        let server = &server;
        async move {
            let (parts, body) = server.raw(Some(identity), true, request).await;
            (parts.status.as_u16(), json(&String::from_utf8_lossy(&body)))
        }
    };
    let (status, map) = send(body).await;
    assert_eq!(status, 201, "{map}");
    assert_eq!((&map["metadata"]["name"], &map["data"]), (&json!("cm"), &json!({"key": "value"})));
    assert_eq!(send(b"k8s\0\x0a\xff".to_vec()).await.0, 400);
    assert_eq!(send(b"nonsense".to_vec()).await.0, 400);
    server.stop().await;
}
