//! What every component that talks to the API server shares: a `kube::Client` in process or over TLS, shared
//! informers, work queues, an event recorder and the leader gate.
