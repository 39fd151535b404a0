//! Who came and who went, of any kind.
//!
//! The garbage collector watches the metadata of every kind; it tells here, so that nobody has to watch a second time.

use std::sync::Arc;

use tokio::sync::broadcast;

/// Changes that a listener may lag behind; then it is told so and looks at everything.
const PENDING_MAX: usize = 1024;

/// An object was created or deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Turnover {
    /// As in `count/deployments.apps`.
    pub resource: Arc<str>,
    pub namespace: String,
}

#[derive(Clone)]
pub struct Census(broadcast::Sender<Turnover>);

impl Default for Census {
    fn default() -> Self {
        Self(broadcast::Sender::new(PENDING_MAX))
    }
}

impl Census {
    pub fn tell(&self, resource: &Arc<str>, namespace: Option<&String>) {
        if self.0.receiver_count() > 0 {
            // Nobody listens any more: nobody wants to know.
            let _ =
                self.0.send(Turnover { resource: resource.clone(), namespace: namespace.cloned().unwrap_or_default() });
        }
    }

    pub fn listen(&self) -> broadcast::Receiver<Turnover> {
        self.0.subscribe()
    }
}
