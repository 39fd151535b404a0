//! Admission policies, and the conditions of webhooks, through the API.

use serde_json::{Value, json};

use crate::hook_server::{Hook, configurations, configure, hook, patch};
use crate::support::{CONFIG_MAPS, Cluster, config_map, pod};

const API: &str = "/apis/admissionregistration.k8s.io/v1";
const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";

/// A policy of this kind (`Validating`, `Mutating`) on ConfigMaps, and a binding of the same name.
pub async fn enforce(cluster: &Cluster, kind: &str, name: &str, spec: Value, binding: Value) {
    let mut spec = spec;
    if spec["matchConstraints"].is_null() {
        spec["matchConstraints"] = json!({"resourceRules": [
            {"operations": ["CREATE", "UPDATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"]}]});
    }
    if kind == "Mutating" && spec["reinvocationPolicy"].is_null() {
        spec["reinvocationPolicy"] = "Never".into();
    }
    let policy = json!({"metadata": {"name": name}, "spec": spec});
    let plural = format!("{}admissionpolicies", kind.to_lowercase());
    cluster.post(&format!("{API}/{plural}"), policy).await.ok();
    let mut binding = binding;
    binding["policyName"] = name.into();
    if kind == "Validating" && binding["validationActions"].is_null() {
        binding["validationActions"] = json!(["Deny"]);
    }
    let plural = format!("{}admissionpolicybindings", kind.to_lowercase());
    cluster.post(&format!("{API}/{plural}"), json!({"metadata": {"name": name}, "spec": binding})).await.ok();
}

fn deployment(name: &str, replicas: i64) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": {"replicas": replicas,
        "selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "b"}}, "spec": pod("p")["spec"]}}})
}

fn on_deployments() -> Value {
    json!({"resourceRules": [
        {"operations": ["CREATE", "UPDATE"], "apiGroups": ["apps"], "apiVersions": ["v1"], "resources": ["deployments"]}]})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_denies_what_its_expressions_do_not_pass() {
    let cluster = Cluster::start().await;
    let spec = json!({"matchConstraints": on_deployments(),
        "variables": [
            {"name": "replicas", "expression": "object.spec.replicas"},
            {"name": "oddReplicas", "expression": "variables.replicas % 2 == 1"},
            {"name": "unused", "expression": "object.spec.nothing.here == 1"}],
        "validations": [
            {"expression": "variables.replicas > 1", "message": "more than one, please"},
            {"expression": "variables.oddReplicas", "messageExpression": "'wanted an odd number, got ' + string(variables.replicas)", "reason": "Forbidden"}]});
    enforce(&cluster, "Validating", "p", spec, json!({})).await;
    let prefix = "deployments.apps \"d\" is forbidden: ValidatingAdmissionPolicy 'p' with binding 'p' denied request: ";
    assert_eq!(
        cluster.post(DEPLOYMENTS, deployment("d", 1)).await.refused(),
        (422, "Invalid".to_owned(), format!("{prefix}more than one, please"))
    );
    assert_eq!(
        cluster.post(DEPLOYMENTS, deployment("d", 2)).await.refused(),
        (403, "Forbidden".to_owned(), format!("{prefix}wanted an odd number, got 2"))
    );
    cluster.post(DEPLOYMENTS, deployment("d", 3)).await.ok();
    let answer = cluster.patch(&format!("{DEPLOYMENTS}/d"), "merge", json!({"spec": {"replicas": 4}})).await;
    assert_eq!(answer.refused().0, 403);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_binding_a_policy_does_nothing_and_bindings_narrow_it() {
    let cluster = Cluster::start().await;
    cluster
        .post("/api/v1/namespaces", json!({"metadata": {"name": "strict", "labels": {"mode": "strict"}}}))
        .await
        .ok();
    let spec = json!({"validations": [{"expression": "false"}]});
    let resources = json!({"namespaceSelector": {"matchLabels": {"mode": "strict"}}});
    enforce(&cluster, "Validating", "p", spec, json!({"matchResources": resources})).await;
    cluster.post(CONFIG_MAPS, config_map("a", "x")).await.ok();
    let strict = "/api/v1/namespaces/strict/configmaps";
    let message = "configmaps \"a\" is forbidden: ValidatingAdmissionPolicy 'p' with binding 'p' denied request: failed expression: false";
    assert_eq!(cluster.post(strict, config_map("a", "x")).await.refused().2, message);
    cluster.delete(&format!("{API}/validatingadmissionpolicybindings/p"), Value::Null).await.ok();
    cluster.post(strict, config_map("a", "x")).await.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn parameters_are_objects() {
    let cluster = Cluster::start().await;
    let spec = json!({"paramKind": {"apiVersion": "v1", "kind": "ConfigMap"},
        "matchConditions": [{"name": "not-the-parameter", "expression": "object.metadata.name != 'limits'"}],
        "validations": [{"expression": "object.data.size() <= int(params.data.most)",
            "messageExpression": "'at most ' + params.data.most"}]});
    let reference = json!({"name": "limits", "namespace": "default", "parameterNotFoundAction": "Deny"});
    enforce(&cluster, "Validating", "p", spec, json!({"paramRef": reference})).await;
    let answer = cluster.post(CONFIG_MAPS, config_map("a", "x")).await.refused();
    assert!(
        answer.2.ends_with(
            "failed to configure binding: no params found for policy binding with `Deny` parameterNotFoundAction"
        ),
        "{}",
        answer.2
    );
    // The parameter itself comes in by a change of the binding.
    let allow = json!({"spec": {"paramRef": {"parameterNotFoundAction": "Allow"}}});
    cluster.patch(&format!("{API}/validatingadmissionpolicybindings/p"), "merge", allow).await.ok();
    let limits = json!({"metadata": {"name": "limits"}, "data": {"most": "1"}});
    cluster.post(CONFIG_MAPS, limits).await.ok();
    cluster.post(CONFIG_MAPS, config_map("a", "x")).await.ok();
    let two = json!({"metadata": {"name": "b"}, "data": {"k": "1", "l": "2"}});
    assert!(cluster.post(CONFIG_MAPS, two).await.refused().2.ends_with("denied request: at most 1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_of_expressions_are_judged_by_the_failure_policy() {
    let cluster = Cluster::start().await;
    let validations = json!([{"expression": "object.data.absent == 'x'"}]);
    enforce(&cluster, "Validating", "p", json!({"validations": validations}), json!({})).await;
    let message = cluster.post(CONFIG_MAPS, config_map("a", "x")).await.refused().2;
    assert!(
        message.ends_with("expression 'object.data.absent == 'x'' resulted in error: no such key: absent"),
        "{message}"
    );
    let ignore = json!({"spec": {"failurePolicy": "Ignore"}});
    cluster.patch(&format!("{API}/validatingadmissionpolicies/p"), "merge", ignore).await.ok();
    cluster.post(CONFIG_MAPS, config_map("a", "x")).await.ok();

    // What would run for ever is stopped.
    let range = "[0,1,2,3,4,5,6,7,8,9]";
    let endless = format!(
        "{range}.all(a, {range}.all(b, {range}.all(c, {range}.all(d, {range}.all(e, {range}.all(f, {range}.all(g, \
         a+b+c+d+e+f+g >= 0)))))))"
    );
    enforce(&cluster, "Validating", "q", json!({"validations": [{"expression": endless}]}), json!({})).await;
    let message = cluster.post(CONFIG_MAPS, config_map("b", "x")).await.refused().2;
    assert!(message.contains("running out of cost budget"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn warnings_do_not_deny() {
    let cluster = Cluster::start().await;
    let spec = json!({"validations": [{"expression": "object.data.key != 'x'", "message": "not x"}]});
    enforce(&cluster, "Validating", "p", spec, json!({"validationActions": ["Warn", "Audit"]})).await;
    let answer = cluster.post(CONFIG_MAPS, config_map("a", "x")).await;
    assert_eq!(
        answer.headers["warning"].to_str().unwrap(),
        "299 - \"Validation failed for ValidatingAdmissionPolicy 'p' with binding 'p': not x\""
    );
    answer.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn expressions_see_the_request_the_namespace_and_the_rights_of_the_user() {
    let cluster = Cluster::start().await;
    let all = "request.operation == 'CREATE' && request.userInfo.username == 'system:admin' && request.namespace == 'default' \
        && request.resource.resource == 'configmaps' && request.kind.kind == 'ConfigMap' && !has(request.subResource) \
        && namespaceObject.metadata.name == 'default' && oldObject == null \
        && namespaceObject.metadata.creationTimestamp < timestamp('2100-01-01T00:00:00Z') \
        && authorizer.group('').resource('pods').namespace('default').check('create').allowed() \
        && authorizer.requestResource.check('custom').allowed() \
        && quantity('1Gi').isGreaterThan(quantity('1000M')) && ip('10.0.0.1').family() == 4 \
        && cidr('10.0.0.0/8').containsIP('10.1.2.3') && url('https://a:1/b?c=d').getPort() == '1' \
        && semver('1.2.3').isLessThan(semver('1.10.0')) && 'a1b2'.findAll('[0-9]') == ['1', '2'] \
        && !format.dns1123Label().validate('abc').hasValue() && format.named('uuid').value().validate('x').hasValue()";
    let account = "!authorizer.serviceAccount('default', 'default').path('/metrics').check('get').allowed()";
    let validations = json!([{"expression": all}, {"expression": account}]);
    enforce(&cluster, "Validating", "p", json!({"validations": validations}), json!({})).await;
    cluster.post(CONFIG_MAPS, config_map("a", "x")).await.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn expressions_that_are_none_are_refused_when_they_are_written() {
    let cluster = Cluster::start().await;
    let mut bad = hook("a", &json!({"url": "https://127.0.0.1:1/"}));
    bad["matchConditions"] = json!([{"name": "c", "expression": "... [][[]][]"}]);
    for kind in ["Validating", "Mutating"] {
        let configuration = json!({"metadata": {"name": "v"}, "webhooks": [bad]});
        let (code, _, message) = cluster.post(&configurations(kind), configuration).await.refused();
        assert_eq!(code, 422, "{message}");
        assert!(message.contains("webhooks[0].matchConditions[0].expression: Invalid value"), "{message}");
        assert!(message.contains("compilation failed"), "{message}");
    }
    let policy = json!({"metadata": {"name": "p"}, "spec": {"matchConstraints": on_deployments(), "validations": [
        {"expression": "object.x > 1 && foo", "messageExpression": "1"}, {"expression": "object.x"}, {"expression": "params.a == 1"}]}});
    let (_, _, message) = cluster.post(&format!("{API}/validatingadmissionpolicies"), policy).await.refused();
    for part in [
        "spec.validations[0].expression: Invalid value: \"object.x > 1 && foo\": compilation failed: ERROR: <input>:1:17: \
         undeclared reference to 'foo' (in container '')",
        "spec.validations[0].messageExpression: Invalid value: \"1\": must evaluate to string but got int",
        "spec.validations[1].expression: Invalid value: \"object.x\": must evaluate to bool but got dyn",
        "undeclared reference to 'params'",
    ] {
        assert!(message.contains(part), "{part} in {message}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn webhooks_are_called_on_their_conditions() {
    let cluster = Cluster::start().await;
    let server =
        Hook::start(&["h2"], |_, _| Some(patch(json!([{"op": "add", "path": "/data/seen", "value": "yes"}])))).await;
    let mut some = hook("a", &server.at("/"));
    some["matchConditions"] = json!([{"name": "not-skip-me", "expression": "object.metadata.name != 'skip-me'"}]);
    configure(&cluster, "Mutating", "m", json!([some])).await;
    assert_eq!(cluster.post(CONFIG_MAPS, config_map("a", "x")).await.ok()["data"]["seen"], "yes");
    assert!(cluster.post(CONFIG_MAPS, config_map("skip-me", "x")).await.ok()["data"]["seen"].is_null());
    let change = json!([{"op": "replace", "path": "/webhooks/0/matchConditions/0/expression", "value": "object.data.none == 'a'"}]);
    cluster.patch(&format!("{}/m", configurations("Mutating")), "json", change).await.ok();
    let (code, _, message) = cluster.post(CONFIG_MAPS, config_map("b", "x")).await.refused();
    assert_eq!(
        (code, message.as_str()),
        (
            403,
            "configmaps \"b\" is forbidden: expression 'object.data.none == 'a'' resulted in error: no such key: none"
        )
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn mutating_policies_apply_configurations_and_patches() {
    let cluster = Cluster::start().await;
    let apply = "Object{metadata: Object.metadata{annotations: {'made': 'by ' + request.userInfo.username}}, \
        spec: Object.spec{template: Object.spec.template{spec: Object.spec.template.spec{\
        initContainers: [Object.spec.template.spec.initContainers{name: 'mesh', image: 'mesh:1', restartPolicy: 'Always'}]}}}}";
    let patches = "[JSONPatch{op: 'replace', path: '/spec/replicas', value: object.spec.replicas + 1}, \
        JSONPatch{op: 'add', path: '/metadata/labels', value: {'a': 'b'}}, \
        JSONPatch{op: 'add', path: '/metadata/annotations/' + jsonpatch.escapeKey('x/y'), value: 'z'}]";
    let spec = json!({"matchConstraints": on_deployments(),
        "matchConditions": [{"name": "once", "expression": "!has(object.metadata.labels)"}],
        "mutations": [
            {"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": apply}},
            {"patchType": "JSONPatch", "jsonPatch": {"expression": patches}}]});
    enforce(&cluster, "Mutating", "m", spec, json!({})).await;
    let made = cluster.post(DEPLOYMENTS, deployment("d", 2)).await.ok();
    assert_eq!(made["spec"]["replicas"], 3);
    assert_eq!(made["metadata"]["annotations"], json!({"made": "by system:admin", "x/y": "z"}));
    assert_eq!(made["metadata"]["labels"], json!({"a": "b"}));
    let template = &made["spec"]["template"]["spec"];
    assert_eq!(template["initContainers"][0]["terminationMessagePolicy"], "File", "{template}");
    assert_eq!(template["containers"][0]["name"], "c");
}

#[tokio::test(flavor = "multi_thread")]
async fn mutating_policies_do_not_overwrite_what_is_atomic() {
    let cluster = Cluster::start().await;
    let apply = "Object{spec: Object.spec{selector: Object.spec.selector{matchLabels: {'x': 'y'}}}}";
    let spec = json!({"matchConstraints": on_deployments(),
        "mutations": [{"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": apply}}]});
    enforce(&cluster, "Mutating", "m", spec, json!({})).await;
    let (code, _, message) = cluster.post(DEPLOYMENTS, deployment("d", 2)).await.refused();
    assert_eq!(code, 403);
    assert_eq!(
        message,
        "policy 'm' with binding 'm' denied request: error applying patch: invalid ApplyConfiguration: may not mutate \
         atomic arrays, maps or structs: .spec.selector"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_mutate_before_webhooks_and_again_after_them_when_they_ask_for_it() {
    let cluster = Cluster::start().await;
    let server = Hook::start(&["h2"], |_, request| {
        assert_eq!(request["object"]["data"]["policy"], "x1");
        Some(patch(json!([{"op": "add", "path": "/data/hook", "value": "yes"}])))
    })
    .await;
    let expression = "Object{data: Object.data{policy: (has(object.data.hook) ? 'x2' : 'x1')}}";
    let spec = json!({"reinvocationPolicy": "IfNeeded",
        "mutations": [{"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": expression}}]});
    enforce(&cluster, "Mutating", "m", spec, json!({})).await;
    configure(&cluster, "Mutating", "m", json!([hook("a", &server.at("/"))])).await;
    let made = cluster.post(CONFIG_MAPS, config_map("a", "x")).await.ok();
    assert_eq!(made["data"], json!({"key": "x", "hook": "yes", "policy": "x2"}));
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_are_told_what_does_not_fit_the_types() {
    let cluster = Cluster::start().await;
    let policies = format!("{API}/validatingadmissionpolicies");
    let mut events = cluster.watch(&format!("{policies}?watch=true")).await;
    let policy = json!({"metadata": {"name": "p"}, "spec": {"matchConstraints": on_deployments(), "validations": [
        {"expression": "object.spec.replicas > 1"}, {"expression": "object.spec.replica > 1"},
        {"expression": "object.spec.replicas == '1'"}]}});
    cluster.post(&policies, policy).await.ok();
    let mut status = Value::Null;
    while status["observedGeneration"] != 1 {
        status = events.next().await.unwrap()["object"]["status"].clone();
    }
    let warnings = status["typeChecking"]["expressionWarnings"].as_array().unwrap();
    let texts: Vec<(&str, &str)> =
        warnings.iter().map(|w| (w["fieldRef"].as_str().unwrap(), w["warning"].as_str().unwrap())).collect();
    assert_eq!(
        texts,
        [
            (
                "spec.validations[1].expression",
                "apps/v1, Kind=Deployment: ERROR: <input>:1:12: undefined field 'replica'\n | object.spec.replica > 1\n | ...........^\n"
            ),
            (
                "spec.validations[2].expression",
                "apps/v1, Kind=Deployment: ERROR: <input>:1:22: found no matching overload for '_==_' applied to '(int, \
                 string)'\n | object.spec.replicas == '1'\n | .....................^\n"
            ),
        ]
    );
    // A new generation is looked at again.
    let change = json!({"spec": {"validations": [{"expression": "object.spec.replicas > 1"}]}});
    cluster.patch(&format!("{policies}/p"), "merge", change).await.ok();
    while status["observedGeneration"] != 2 {
        status = events.next().await.unwrap()["object"]["status"].clone();
    }
    assert_eq!(status["typeChecking"], json!({}));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_is_in_force_on_every_server_with_the_next_request() {
    let cluster = Cluster::start().await;
    let other = cluster.another(|_| ()).await;
    for round in 0..20 {
        let name = format!("m{round}");
        enforce(&cluster, "Validating", "p", json!({"validations": [{"expression": "false"}]}), json!({})).await;
        assert_eq!(other.post(CONFIG_MAPS, config_map(&name, "x")).await.refused().0, 422);
        cluster.delete(&format!("{API}/validatingadmissionpolicies/p"), Value::Null).await.ok();
        other.post(CONFIG_MAPS, config_map(&name, "x")).await.ok();
        cluster.delete(&format!("{API}/validatingadmissionpolicybindings/p"), Value::Null).await.ok();
    }
}
