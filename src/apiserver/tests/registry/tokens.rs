//! Service account tokens and reviews.

use serde_json::json;

use crate::support::{Cluster, PODS, pod};

const TOKEN: &str = "/api/v1/namespaces/default/serviceaccounts/default/token";

#[tokio::test(flavor = "multi_thread")]
async fn a_bound_token_holds_as_long_as_its_pod() {
    let cluster = Cluster::start().await;
    let made = cluster.post(PODS, pod("p")).await.ok();
    let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"audiences": [],
        "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": made["metadata"]["uid"]}}});
    let answer = cluster.post(TOKEN, request.clone()).await;
    assert_eq!(answer.code, 201);
    let token = answer.ok()["status"]["token"].as_str().unwrap().to_owned();
    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token}});
    let reviews = "/apis/authentication.k8s.io/v1/tokenreviews";
    let status = cluster.post(reviews, review.clone()).await.ok()["status"].clone();
    assert_eq!(status["authenticated"], true, "{status}");
    assert_eq!(status["user"]["username"], "system:serviceaccount:default:default");
    assert_eq!(status["user"]["extra"]["authentication.kubernetes.io/pod-name"], json!(["p"]));
    let mut other = request.clone();
    other["spec"]["boundObjectRef"]["uid"] = "other".into();
    assert_eq!(cluster.post(TOKEN, other).await.code, 409);
    cluster.delete(&format!("{PODS}/p"), json!(null)).await.ok();
    let status = cluster.post(reviews, review).await.ok()["status"].clone();
    assert!(status["authenticated"] != true, "{status}");
    let mut short = request;
    short["spec"] = json!({"audiences": ["x"], "expirationSeconds": 5});
    let (code, _, message) = cluster.post(TOKEN, short).await.refused();
    assert_eq!(code, 422);
    assert!(message.contains("may not specify a duration less than 10 minutes"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn reviews_tell_what_is_allowed() {
    let cluster = Cluster::start().await;
    let reviews = "/apis/authorization.k8s.io/v1";
    let attributes = json!({"verb": "get", "resource": "pods", "namespace": "default"});
    let own = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview", "spec": {"resourceAttributes": attributes}});
    let answer = cluster.post(&format!("{reviews}/selfsubjectaccessreviews"), own.clone()).await.ok();
    assert_eq!(answer["status"]["allowed"], true);
    let nobody = cluster.as_user("nobody", &[]);
    let answer = nobody.post(&format!("{reviews}/selfsubjectaccessreviews"), own).await.ok();
    assert_eq!(answer["status"]["allowed"], false);
    let about = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": {"user": "nobody", "resourceAttributes": attributes}});
    let answer = cluster.post(&format!("{reviews}/subjectaccessreviews"), about).await.ok();
    assert_eq!(answer["status"]["allowed"], false);
    let rules = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview", "spec": {"namespace": "default"}});
    let answer = nobody.post(&format!("{reviews}/selfsubjectrulesreviews"), rules).await.ok();
    assert!(answer["status"]["nonResourceRules"].as_array().is_some_and(|rules| !rules.is_empty()));
    let whoami = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
    let answer = nobody.post("/apis/authentication.k8s.io/v1/selfsubjectreviews", whoami).await.ok();
    assert_eq!(answer["status"]["userInfo"]["username"], "nobody");
}
