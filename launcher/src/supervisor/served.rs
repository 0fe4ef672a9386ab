//! Tells whether clients may have been served, which separates a failed start from a running server that loses a part.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::readiness::RouterProbe;

const ASK_TIMEOUT: Duration = Duration::from_secs(1);

/// A flag that becomes true once, when everything is ready. Cheap to clone.
///
/// The launcher asks for readiness from time to time, and a client may be a little quicker: what happens between is
/// decided by what the router says.
#[derive(Clone)]
pub struct Served {
    noted: Arc<AtomicBool>,
    router: RouterProbe,
}

impl Served {
    pub fn new(router: RouterProbe) -> Self {
        Self {
            noted: Arc::default(),
            router,
        }
    }

    /// Notes that everything is ready.
    pub fn note(&self) {
        self.noted.store(true, Ordering::Relaxed);
    }

    /// Returns what is known without asking the router.
    pub fn noted(&self) -> bool {
        self.noted.load(Ordering::Relaxed)
    }

    /// Returns the same, and asks the router when nothing was noted yet.
    pub async fn ask(&self) -> bool {
        if !self.noted() && self.router.has_loaded(ASK_TIMEOUT).await {
            self.note();
        }
        self.noted()
    }
}
