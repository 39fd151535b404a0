//! The task without its loop: an API that answers as told, and changes in the order of the test.

use std::convert::Infallible;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use serde_json::json;

use super::*;

/// A scheduler, what it says, and the requests that the API has had.
struct Stage {
    scheduler: Scheduler,
    heard: mpsc::Receiver<Outcome>,
    requests: Arc<Mutex<Vec<String>>>,
    /// What the API answers.
    code: Arc<AtomicU16>,
}

fn pod(name: &str, more: &Value) -> Arc<Pod> {
    let mut pod = json!({"metadata": {"name": name, "uid": name, "namespace": "default"}, "spec": {
        "containers": [{"name": "c", "resources": {"requests": {"cpu": "1"}}}]}});
    for (field, value) in more.as_object().unwrap() {
        pod["spec"][field] = value.clone();
    }
    Arc::new(serde_json::from_value(pod).unwrap())
}

impl Stage {
    fn new(pods: &[Arc<Pod>]) -> Self {
        let (requests, code) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicU16::new(201)));
        let (seen, answer) = (requests.clone(), code.clone());
        let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
            seen.lock().unwrap().push(format!("{} {}", request.method(), request.uri().path()));
            let code = answer.load(Ordering::SeqCst);
            let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "code": code,
                "status": if code < 300 { "Success" } else { "Failure" }, "message": "as told", "reason": "NotFound"});
            let body = kube::client::Body::from(status.to_string().into_bytes());
            let response = http::Response::builder().status(code).body(body).unwrap();
            async move { Ok::<_, Infallible>(response) }
        });
        let (outcomes, heard) = mpsc::channel(8);
        let mut scheduler = Scheduler {
            client: mussel_client::in_process(service),
            recorder: Recorder::silent(),
            known: Known {
                nodes: Informer::fixed([]),
                pods: Informer::fixed(pods.iter().map(|pod| (**pod).clone())),
                namespaces: Informer::fixed([]),
                budgets: Informer::fixed([]),
            },
            cluster: Cluster::default(),
            volumes: Volumes::over(Informer::fixed([]), Informer::fixed([]), Informer::fixed([])),
            queue: Queue::default(),
            assumed: HashMap::new(),
            preempting: HashSet::new(),
            tasks: TaskTracker::new(),
            outcomes,
            permits: Arc::new(tokio::sync::Semaphore::new(BINDINGS_MAX)),
            stop: CancellationToken::new(),
        };
        let node = json!({"metadata": {"name": "a"}, "status": {"allocatable": {"cpu": "1", "pods": "9"}}});
        scheduler.node_changed(Change::Applied { old: None, new: Arc::new(serde_json::from_value(node).unwrap()) });
        Self { scheduler, heard, requests, code }
    }

    fn see(&mut self, pod: &Arc<Pod>) {
        self.scheduler.pod_changed(Change::Applied { old: None, new: pod.clone() });
    }

    async fn finish(&mut self) {
        self.scheduler.tasks.close();
        self.scheduler.tasks.wait().await;
        self.scheduler.tasks.reopen();
    }

    fn requests(&self) -> Vec<String> {
        std::mem::take(&mut *self.requests.lock().unwrap())
    }
}

#[tokio::test(start_paused = true)]
async fn a_binding_that_is_refused_is_tried_again() {
    let wanted = pod("p", &json!({}));
    let mut stage = Stage::new(std::slice::from_ref(&wanted));
    // Even "not found": the pod that we know of may only not be visible yet.
    stage.code.store(404, Ordering::SeqCst);
    stage.see(&wanted);
    stage.scheduler.schedule();
    stage.finish().await;
    assert_eq!(stage.requests(), ["POST /api/v1/namespaces/default/pods/p/binding"]);
    let outcome = stage.heard.recv().await.unwrap();
    stage.scheduler.heard(outcome);
    assert!(stage.scheduler.cluster.placed("p").is_none(), "its room is free again");

    stage.code.store(201, Ordering::SeqCst);
    tokio::time::advance(Duration::from_secs(2)).await;
    stage.scheduler.queue.wake(Instant::now());
    stage.scheduler.schedule();
    stage.finish().await;
    assert_eq!(stage.requests(), ["POST /api/v1/namespaces/default/pods/p/binding"]);
    assert!(stage.scheduler.cluster.placed("p").is_some());
}

#[tokio::test(start_paused = true)]
async fn old_news_of_a_pod_that_is_being_bound_changes_nothing() {
    let wanted = pod("p", &json!({}));
    let mut stage = Stage::new(std::slice::from_ref(&wanted));
    stage.see(&wanted);
    stage.scheduler.schedule();
    stage.see(&wanted);
    assert!(!stage.scheduler.queue.has_next());
    assert!(stage.scheduler.cluster.placed("p").is_some());
    stage.see(&pod("p", &json!({"nodeName": "a"})));
    assert!(stage.scheduler.assumed.is_empty() && stage.scheduler.cluster.placed("p").is_some());
}

#[tokio::test(start_paused = true)]
async fn a_pod_waits_for_another_to_leave() {
    let (first, second) = (pod("first", &json!({})), pod("second", &json!({})));
    let mut stage = Stage::new(&[]);
    stage.see(&first);
    stage.see(&second);
    stage.scheduler.schedule();
    stage.scheduler.schedule();
    stage.finish().await;
    let mut requests = stage.requests();
    requests.sort();
    assert_eq!(
        requests,
        ["PATCH /api/v1/namespaces/default/pods/second/status", "POST /api/v1/namespaces/default/pods/first/binding"]
    );
    assert!(!stage.scheduler.queue.has_next());
    stage.scheduler.pod_changed(Change::Deleted(first));
    assert!(stage.scheduler.queue.has_next());
    stage.scheduler.schedule();
    assert!(stage.scheduler.cluster.placed("second").is_some());
}

#[tokio::test(start_paused = true)]
async fn the_important_make_room() {
    let (low, high) = (pod("low", &json!({"nodeName": "a", "priority": 1})), pod("high", &json!({"priority": 9})));
    let mut stage = Stage::new(&[]);
    stage.see(&low);
    stage.see(&high);
    stage.scheduler.schedule();
    assert_eq!(stage.scheduler.cluster.nomination("high"), Some("a"));
    // Somebody who comes meanwhile neither takes the room nor chases others away again.
    stage.see(&pod("low2", &json!({"priority": 2})));
    stage.scheduler.pod_changed(Change::Deleted(low));
    let order: Vec<_> = [stage.scheduler.queue.next(), stage.scheduler.queue.next()].into_iter().flatten().collect();
    assert_eq!(order.iter().map(|attempt| uid(&attempt.pod)).collect::<Vec<_>>(), ["high", "low2"]);
    let low2 = Placed::new(order[1].pod.clone());
    let decision = decide(&low2, &stage.scheduler.cluster, &stage.scheduler.volumes, &[], false);
    assert!(matches!(decision, Decision::Wait { preemption: None, .. }), "{decision:?}");
}

#[tokio::test(start_paused = true)]
async fn nothing_is_forgotten_when_changes_are_missed() {
    let (waiting, gone) = (pod("waiting", &json!({})), pod("gone", &json!({})));
    let mut stage = Stage::new(std::slice::from_ref(&waiting));
    stage.see(&gone);
    stage.scheduler.pod_changed(Change::Resync);
    assert_eq!(stage.scheduler.queue.next().map(|attempt| uid(&attempt.pod).to_owned()).as_deref(), Some("waiting"));
    assert!(!stage.scheduler.queue.has_next());
}

#[tokio::test(start_paused = true)]
async fn gates_keep_a_pod_out() {
    let mut stage = Stage::new(&[]);
    stage.see(&pod("p", &json!({"schedulingGates": [{"name": "g"}]})));
    assert!(!stage.scheduler.queue.has_next());
    stage.finish().await;
    assert_eq!(stage.requests(), ["PATCH /api/v1/namespaces/default/pods/p/status"]);
    stage.see(&pod("p", &json!({})));
    assert!(stage.scheduler.queue.has_next());
}
