//! Certificate signing requests: those of kubelets are approved, what is approved is signed, and what is done with, or
//! what nobody decided, is removed. Upstream's `csrapproving`, `csrsigning` and `csrcleaner`, at one queue.

mod age;
mod signer;

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::authorization::v1::SubjectAccessReview;
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{DeleteParams, PostParams, Preconditions};
use kube::{Api, Client};
use mussel_client::{Informer, WorkQueue};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::Context;
use crate::control::{self, Key, follow_keys, queue_all};
use crate::error::{Error, Outcome, is_not_found};

pub use signer::Authority;
use signer::{Identity, Purpose};

/// `--cluster-signing-duration`.
pub const SIGNING_DURATION: Duration = Duration::from_secs(365 * 86_400);

const WORKERS: usize = 2;

/// Holds the keys of the cluster's authorities.
pub trait Signer: std::fmt::Debug + Send + Sync {
    /// The certificate (PEM) for the request (DER, PKCS #10), for no longer than `lifetime`.
    ///
    /// # Errors
    /// Why not, for people; trying again may help.
    fn sign(
        &self,
        authority: Authority,
        request: &[u8],
        usages: &[String],
        lifetime: Duration,
    ) -> Result<String, String>;
}

struct Controller {
    client: Client,
    requests: Informer<CertificateSigningRequest>,
    signer: Arc<dyn Signer>,
    signing_duration: Duration,
}

pub async fn run(context: Context, stop: CancellationToken) {
    let requests = context.informers.of::<CertificateSigningRequest>();
    let queue = WorkQueue::new();
    let controller = Controller {
        client: context.client(),
        requests: requests.clone(),
        signer: context.config.signer.clone(),
        signing_duration: context.config.signing_duration,
    };
    tokio::join!(follow_keys(requests.clone(), queue.clone(), stop.clone()), async {
        tokio::select! {
            () = stop.cancelled() => return,
            () = requests.synced() => queue_all(&requests, &queue),
        }
        control::work("certificate", queue.clone(), WORKERS, stop.clone(), |key| controller.reconcile(key)).await;
    });
}

impl Controller {
    async fn reconcile(&self, (_, name): Key) -> Outcome {
        let Some(request) = self.requests.get("", &name) else { return Ok(None) };
        let now = Timestamp::now();
        let left = age::left(&request, now);
        if left.is_zero() {
            return self.remove(&request).await;
        }
        let decided = has(&request, "Approved") || has(&request, "Denied");
        if !decided && certificate(&request).is_none() {
            self.approve(&request).await?;
        } else if has(&request, "Approved") && !has(&request, "Failed") && certificate(&request).is_none() {
            self.sign(&request).await?;
        }
        Ok(Some(left))
    }

    async fn remove(&self, request: &CertificateSigningRequest) -> Outcome {
        let preconditions = Preconditions {
            uid: request.metadata.uid.clone(),
            resource_version: request.metadata.resource_version.clone(),
        };
        let params = DeleteParams { preconditions: Some(preconditions), ..Default::default() };
        let name = request.metadata.name.as_deref().unwrap_or_default();
        match self.api().delete(name, &params).await {
            Err(error) if !is_not_found(&error) => Err(error.into()),
            _ => Ok(None),
        }
    }

    fn api(&self) -> Api<CertificateSigningRequest> {
        Api::all(self.client.clone())
    }

    /// Approves a kubelet's request for its client certificate, if its user may have one without being asked.
    async fn approve(&self, request: &CertificateSigningRequest) -> Result<(), Error> {
        let Ok(identity) = Identity::read(&request.spec.request.0) else { return Ok(()) };
        if request.spec.signer_name != signer::KUBELET_CLIENT
            || Purpose::KubeletClient.check(&identity, &request.spec.usages.clone().unwrap_or_default()).is_err()
        {
            return Ok(());
        }
        let own = request.spec.username.as_deref() == identity.common_name.as_deref();
        let ways = [
            ("selfnodeclient", "Auto approving self kubelet client certificate after SubjectAccessReview."),
            ("nodeclient", "Auto approving kubelet client certificate after SubjectAccessReview."),
        ];
        for (subresource, message) in ways.into_iter().skip(usize::from(!own)) {
            if self.may(request, subresource).await? {
                let approved = with_condition(request, "Approved", "AutoApproved", message);
                let params = PostParams::default();
                let _: CertificateSigningRequest =
                    self.api().replace_subresource("approval", name(request), &params, &approved).await?;
                return Ok(());
            }
        }
        Ok(())
    }

    async fn may(&self, request: &CertificateSigningRequest, subresource: &str) -> Result<bool, Error> {
        let spec = &request.spec;
        let review = json!({"metadata": {}, "spec": {
            "user": spec.username, "uid": spec.uid, "groups": spec.groups, "extra": spec.extra,
            "resourceAttributes": {"group": "certificates.k8s.io", "resource": "certificatesigningrequests", "verb": "create",
                "subresource": subresource, "version": "*"}}});
        let review: SubjectAccessReview = serde_json::from_value(review)?;
        let api: Api<SubjectAccessReview> = Api::all(self.client.clone());
        let answer = api.create(&PostParams::default(), &review).await?;
        Ok(answer.status.is_some_and(|status| status.allowed))
    }

    async fn sign(&self, request: &CertificateSigningRequest) -> Result<(), Error> {
        let Some(purpose) = Purpose::of(&request.spec.signer_name) else { return Ok(()) };
        let usages = request.spec.usages.clone().unwrap_or_default();
        let identity = Identity::read(&request.spec.request.0).map_err(Error::Unfinished)?;
        let updated = match purpose.check(&identity, &usages) {
            Err(why) => with_condition(request, "Failed", "SignerValidationFailure", &why),
            Ok(()) => {
                let asked = request.spec.expiration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
                let lifetime = asked.map_or(self.signing_duration, Duration::from_secs).min(self.signing_duration);
                let pem = self
                    .signer
                    .sign(purpose.authority(), &identity.der, &usages, lifetime)
                    .map_err(Error::Unfinished)?;
                let mut signed = request.clone();
                signed.status.get_or_insert_default().certificate = Some(ByteString(pem.into_bytes()));
                signed
            }
        };
        self.api().replace_status(name(request), &PostParams::default(), &updated).await?;
        Ok(())
    }
}

fn name(request: &CertificateSigningRequest) -> &str {
    request.metadata.name.as_deref().unwrap_or_default()
}

fn conditions(request: &CertificateSigningRequest) -> &[CertificateSigningRequestCondition] {
    request.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default()
}

fn has(request: &CertificateSigningRequest, kind: &str) -> bool {
    conditions(request).iter().any(|condition| condition.type_ == kind)
}

fn certificate(request: &CertificateSigningRequest) -> Option<&[u8]> {
    let status = request.status.as_ref()?;
    status.certificate.as_ref().map(|bytes| bytes.0.as_slice()).filter(|bytes| !bytes.is_empty())
}

fn with_condition(
    request: &CertificateSigningRequest,
    kind: &str,
    reason: &str,
    message: &str,
) -> CertificateSigningRequest {
    let mut request = request.clone();
    let now = Some(Time(Timestamp::now()));
    request.status.get_or_insert_default().conditions.get_or_insert_default().push(
        CertificateSigningRequestCondition {
            type_: kind.to_owned(),
            status: "True".to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message.to_owned()),
            last_update_time: now.clone(),
            last_transition_time: now,
        },
    );
    request
}
