//! Turns questions on the wire into answers.

use std::time::Duration;

use hickory_proto::op::{Edns, MessageType, Metadata, OpCode, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, Record, RecordType};
use hickory_server::net::runtime::Time;
use hickory_server::server::{Request, RequestHandler, ResponseHandler, ResponseInfo};
use hickory_server::zone_handler::MessageResponseBuilder;
use tokio::sync::Semaphore;
use tokio::time::{self, Instant};

use crate::upstream::{Refusal, Upstream};
use crate::zone::{Answer, Zone};

/// The largest answer over UDP that is not cut by paths with an odd MTU (DNS flag day 2020).
const UDP_PAYLOAD: u16 = 1232;
/// Questions to other name servers under way at once; more are refused, so that a dead upstream cannot fill memory.
const FORWARDS_MAX: usize = 512;
/// Questions that wait for the start to be over; more are refused.
const EARLY_MAX: usize = 1024;
/// What was known before is there after five seconds, when no server answers.
const START_TIME: Duration = Duration::from_secs(6);
/// Aliases that lead from cluster name to cluster name.
const ALIASES_MAX: usize = 8;

pub struct Handler {
    zone: Zone,
    upstream: Upstream,
    forwards: Semaphore,
    start: Instant,
    early: Semaphore,
}

#[derive(Default)]
struct Reply {
    code: ResponseCode,
    /// Ours to say, not somebody else's.
    authoritative: bool,
    answers: Vec<Record>,
    additionals: Vec<Record>,
    soa: Option<Record>,
}

impl Reply {
    fn code(code: ResponseCode) -> Self {
        Self { code, ..Self::default() }
    }
}

impl Handler {
    pub fn new(zone: Zone, upstream: Upstream) -> Self {
        let (forwards, early) = (Semaphore::new(FORWARDS_MAX), Semaphore::new(EARLY_MAX));
        Self { zone, upstream, forwards, start: Instant::now(), early }
    }

    /// Waits for what answers are made of, which is there a moment after the start: a resolver takes a failure for the
    /// answer, where it asks again when it hears nothing.
    async fn begun(&self) -> bool {
        let Ok(_permit) = self.early.try_acquire() else { return false };
        time::timeout_at(self.start + START_TIME, self.zone.synced()).await.is_ok()
    }

    async fn reply(&self, request: &Request) -> Reply {
        if request.metadata.op_code != OpCode::Query || request.metadata.message_type != MessageType::Query {
            return Reply::code(ResponseCode::NotImp);
        }
        let Ok(info) = request.request_info() else { return Reply::code(ResponseCode::FormErr) };
        if info.query.query_class() != DNSClass::IN {
            return Reply::code(ResponseCode::Refused);
        }
        let record_type = info.query.query_type();
        if record_type == RecordType::AXFR || record_type == RecordType::IXFR {
            return Reply::code(ResponseCode::Refused);
        }
        // The name as it was asked, so that the answer repeats its case (DNS 0x20).
        self.resolve(info.query.original().name().clone(), record_type).await
    }

    async fn resolve(&self, mut name: Name, record_type: RecordType) -> Reply {
        let mut reply = Reply { authoritative: true, ..Reply::default() };
        for _ in 0..ALIASES_MAX {
            match self.zone.lookup(&name, record_type) {
                Answer::NotYet if self.begun().await => {}
                Answer::NotYet => return Reply::code(ResponseCode::ServFail),
                Answer::NoSuchName => {
                    reply.soa = Some(self.zone.soa());
                    // After an alias the code speaks of the last name (RFC 6604).
                    reply.code = ResponseCode::NXDomain;
                    return reply;
                }
                Answer::Records { answers, additionals } => {
                    reply.soa = answers.is_empty().then(|| self.zone.soa());
                    reply.answers.extend(answers);
                    reply.additionals = additionals;
                    return reply;
                }
                Answer::Alias { record, target } => {
                    reply.answers.push(*record);
                    if record_type == RecordType::CNAME {
                        return reply;
                    }
                    name = target;
                }
                Answer::NotOurs => return self.forward(name, record_type, reply).await,
            }
        }
        Reply::code(ResponseCode::ServFail)
    }

    async fn forward(&self, name: Name, record_type: RecordType, mut reply: Reply) -> Reply {
        let Ok(_permit) = self.forwards.try_acquire() else { return Reply::code(ResponseCode::ServFail) };
        let after_alias = !reply.answers.is_empty();
        reply.authoritative = after_alias;
        match self.upstream.lookup(name, record_type).await {
            Ok(records) => reply.answers.extend(records),
            Err(Refusal::NoRecord) => {}
            Err(Refusal::NoSuchName) => reply.code = ResponseCode::NXDomain,
            // The alias itself is known, and of use to who asks for it.
            Err(Refusal::Failed) if after_alias => {}
            Err(Refusal::Failed) => reply.code = ResponseCode::ServFail,
        }
        reply
    }
}

#[async_trait::async_trait]
impl RequestHandler for Handler {
    async fn handle_request<R: ResponseHandler, T: Time>(&self, request: &Request, mut responses: R) -> ResponseInfo {
        let reply = self.reply(request).await;
        let mut metadata = Metadata::response_from_request(&request.metadata);
        metadata.response_code = reply.code;
        metadata.authoritative = reply.authoritative;
        metadata.recursion_available = true;
        let mut edns = Edns::new();
        edns.set_max_payload(UDP_PAYLOAD).set_version(0);
        let mut builder = MessageResponseBuilder::from_message_request(request);
        if request.edns.is_some() {
            builder.edns(&edns);
        }
        let response = builder.build(metadata, &reply.answers, &[], &reply.soa, &reply.additionals);
        match responses.send_response(response).await {
            Ok(info) => info,
            Err(error) => {
                tracing::debug!(%error, "answer is not sent");
                ResponseInfo::from(hickory_proto::op::Header { metadata, counts: Default::default() })
            }
        }
    }
}
