//! Permits to wait or run: as many as `max_concurrent_requests`, and those of tenants that hold fewer than their share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::sync::Notify;

use crate::error::SubmitError;
use crate::tenant::Tenant;

/// All permits of an engine or an encoder.
#[derive(Debug)]
pub(crate) struct Permits {
    limit: usize,
    num_taken: AtomicUsize,
    /// Notified when `num_taken` reaches zero.
    idle: Notify,
}

impl Permits {
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Permits {
            limit,
            num_taken: AtomicUsize::new(0),
            idle: Notify::new(),
        })
    }

    /// Takes a permit if one is available. Where none is, a tenant that holds fewer than its share gets one more: others
    /// cannot keep it out.
    pub fn take(self: &Arc<Self>, tenant: Option<&Arc<Tenant>>) -> Result<Permit, SubmitError> {
        if let Some(tenant) = tenant {
            tenant.begin()?;
        }
        let limit = self.limit;
        let is_due = tenant.is_some_and(|tenant| tenant.is_within_share(limit));
        let most = if is_due { 2 * limit } else { limit };
        let taken = self
            .num_taken
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |taken| {
                (taken < most).then_some(taken + 1)
            });
        if taken.is_err() {
            if let Some(tenant) = tenant {
                tenant.end();
            }
            return Err(SubmitError::Overloaded {
                limit,
                retry_after_s: 1,
            });
        }
        Ok(Permit(Arc::new(Taken {
            permits: self.clone(),
            tenant: tenant.cloned(),
            is_returned: AtomicBool::new(false),
        })))
    }

    /// Waits until every permit has been returned.
    pub async fn all_returned(&self) {
        loop {
            let idle = self.idle.notified();
            if self.num_taken.load(Ordering::SeqCst) == 0 {
                return;
            }
            idle.await;
        }
    }
}

/// A permit for one request. Dropping it returns it.
#[derive(Debug)]
pub struct Permit(Arc<Taken>);

#[derive(Debug)]
struct Taken {
    permits: Arc<Permits>,
    tenant: Option<Arc<Tenant>>,
    is_returned: AtomicBool,
}

impl Permit {
    /// Tenant that it was taken for.
    pub(crate) fn tenant(&self) -> Option<&Arc<Tenant>> {
        self.0.tenant.as_ref()
    }

    /// A second holder of the same permit. It is returned when the first of the two is dropped.
    pub(crate) fn twin(&self) -> Self {
        Permit(self.0.clone())
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let Taken {
            permits,
            tenant,
            is_returned,
        } = &*self.0;
        if is_returned.swap(true, Ordering::SeqCst) {
            return;
        }
        if let Some(tenant) = tenant {
            tenant.end();
        }
        if permits.num_taken.fetch_sub(1, Ordering::SeqCst) == 1 {
            permits.idle.notify_waiters();
        }
    }
}

/// A permit taken before its request was built, or none. A clone of the request has none.
#[derive(Debug, Default)]
pub struct ReservedPermit(Option<Permit>);

impl ReservedPermit {
    pub(crate) fn take(&mut self) -> Option<Permit> {
        self.0.take()
    }
}

impl From<Permit> for ReservedPermit {
    fn from(permit: Permit) -> Self {
        ReservedPermit(Some(permit))
    }
}

impl Clone for ReservedPermit {
    fn clone(&self) -> Self {
        ReservedPermit(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tenant::TenantLimits;

    #[tokio::test]
    async fn a_dropped_permit_is_returned_once() {
        let permits = Permits::new(1);
        let reserved = ReservedPermit::from(permits.take(None).expect("a permit"));
        assert!(permits.take(None).is_err());
        let copy = reserved.clone();
        let twin = reserved.0.as_ref().map(Permit::twin);
        drop(reserved);
        permits.all_returned().await;
        assert!(copy.0.is_none());
        let next = permits.take(None).expect("it was returned");
        drop(twin);
        assert!(permits.take(None).is_err(), "the twin returns nothing");
        drop(next);
    }

    #[test]
    fn a_tenant_cannot_keep_another_out() {
        let among = Arc::new(AtomicUsize::new(2));
        let tenant = |id| Tenant::new(id, TenantLimits::default(), among.clone());
        let (greedy, late) = (tenant(0), tenant(1));
        let permits = Permits::new(4);
        let mut held: Vec<Permit> = (0..4)
            .map(|_| permits.take(Some(&greedy)).expect("a permit"))
            .collect();
        assert!(permits.take(Some(&greedy)).is_err());
        assert_eq!(greedy.num_requests(), 4, "a refused request does not count");
        held.extend((0..2).map(|_| permits.take(Some(&late)).expect("its share")));
        assert!(permits.take(Some(&late)).is_err());
        held.truncate(1);
        assert_eq!((greedy.num_requests(), late.num_requests()), (1, 0));
        permits.take(Some(&greedy)).expect("places are free again");
    }
}
