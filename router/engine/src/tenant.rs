//! Clients that share an engine: the requests that each has under way, and the tokens that it may use.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::error::SubmitError;

/// Limits of a tenant.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TenantLimits {
    /// Maximum number of requests at once, waiting ones included; `None`: as many as anybody.
    pub max_requests: Option<usize>,
    /// Maximum number of tokens a minute, of prompts and answers; `None`: any number.
    pub max_tokens_per_minute: Option<u64>,
}

/// A client of several. Its requests get an equal share of what there is: of places where they are short, and of the
/// order in which waiting requests are started.
#[derive(Debug)]
pub struct Tenant {
    id: u32,
    /// Number of tenants that share the engine.
    among: Arc<AtomicUsize>,
    num_taken: AtomicUsize,
    account: Mutex<Account>,
}

/// Limits, and the tokens that are left of them.
#[derive(Debug)]
struct Account {
    limits: TenantLimits,
    /// Tokens that may be used now. A request that was begun within its limit is not cut off, so that this may become
    /// negative.
    left: f64,
    counted: Instant,
}

impl Tenant {
    /// `id`: number that no other tenant of the engine has. `among`: how many tenants share it.
    pub fn new(id: u32, limits: TenantLimits, among: Arc<AtomicUsize>) -> Arc<Self> {
        Arc::new(Tenant {
            id,
            among,
            num_taken: AtomicUsize::new(0),
            account: Mutex::new(Account {
                limits,
                left: limits.max_tokens_per_minute.unwrap_or_default() as f64,
                counted: Instant::now(),
            }),
        })
    }

    pub fn id(&self) -> u32 {
        self.id
    }

    pub fn limits(&self) -> TenantLimits {
        self.account().limits
    }

    /// Sets other limits. A new limit of tokens begins with a whole minute's.
    pub fn set_limits(&self, limits: TenantLimits) {
        let mut account = self.account();
        if account.limits.max_tokens_per_minute != limits.max_tokens_per_minute {
            account.left = limits.max_tokens_per_minute.unwrap_or_default() as f64;
            account.counted = Instant::now();
        }
        account.limits = limits;
    }

    /// Number of its requests under way.
    pub fn num_requests(&self) -> usize {
        self.num_taken.load(Ordering::SeqCst)
    }

    /// True if it has no more requests under way than its part of `num_places`.
    pub(crate) fn is_within_share(&self, num_places: usize) -> bool {
        let among = self.among.load(Ordering::Relaxed).max(1);
        self.num_requests() <= (num_places / among).max(1)
    }

    /// Refuses while its tokens are spent.
    pub(crate) fn check_tokens(&self, now: Instant) -> Result<(), SubmitError> {
        let mut account = self.account();
        let Some(limit) = account.limits.max_tokens_per_minute else {
            return Ok(());
        };
        account.refill(limit, now);
        if account.left >= 1.0 {
            return Ok(());
        }
        let missing = 1.0 - account.left;
        Err(SubmitError::TokensSpent {
            limit,
            retry_after_s: (missing * MINUTE_S / limit as f64).ceil() as u64,
        })
    }

    /// Counts another request, unless that would be too many at once.
    pub(crate) fn begin(&self) -> Result<(), SubmitError> {
        let limit = self.limits().max_requests.unwrap_or(usize::MAX);
        self.num_taken
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |taken| {
                (taken < limit).then_some(taken + 1)
            })
            .map(|_| ())
            .map_err(|_| SubmitError::TenantBusy {
                limit,
                retry_after_s: 1,
            })
    }

    /// Counts a request that has ended.
    pub(crate) fn end(&self) {
        self.num_taken.fetch_sub(1, Ordering::SeqCst);
    }

    /// Takes tokens from what it may use.
    pub(crate) fn charge(&self, num_tokens: usize) {
        let mut account = self.account();
        if account.limits.max_tokens_per_minute.is_some() {
            account.left -= num_tokens as f64;
        }
    }

    fn account(&self) -> MutexGuard<'_, Account> {
        self.account.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const MINUTE_S: f64 = 60.0;

impl Account {
    /// Adds what has become free since it was counted last, up to a minute's.
    fn refill(&mut self, limit: u64, now: Instant) {
        let passed: Duration = now.saturating_duration_since(self.counted);
        let limit = limit as f64;
        self.left = (self.left + passed.as_secs_f64() * limit / MINUTE_S).min(limit);
        self.counted = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant(max_requests: Option<usize>, max_tokens_per_minute: Option<u64>) -> Arc<Tenant> {
        let limits = TenantLimits {
            max_requests,
            max_tokens_per_minute,
        };
        Tenant::new(7, limits, Arc::default())
    }

    #[test]
    fn requests_at_once_are_limited() {
        let tenant = tenant(Some(2), None);
        assert_eq!(tenant.begin(), Ok(()));
        assert_eq!(tenant.begin(), Ok(()));
        let error = SubmitError::TenantBusy {
            limit: 2,
            retry_after_s: 1,
        };
        assert_eq!(tenant.begin(), Err(error));
        assert_eq!(tenant.num_requests(), 2);
        tenant.end();
        assert_eq!(tenant.begin(), Ok(()));
    }

    #[test]
    fn tokens_become_free_again_with_time() {
        let (tenant, now) = (tenant(None, Some(600)), Instant::now());
        assert_eq!(tenant.check_tokens(now), Ok(()));
        tenant.charge(620);
        let error = SubmitError::TokensSpent {
            limit: 600,
            retry_after_s: 3,
        };
        assert_eq!(tenant.check_tokens(now), Err(error));
        let later = now + Duration::from_secs(3);
        assert_eq!(tenant.check_tokens(later), Ok(()));
        tenant.charge(11);
        assert!(tenant.check_tokens(later).is_err());
    }

    #[test]
    fn no_more_than_a_minutes_tokens_are_saved() {
        let (tenant, now) = (tenant(None, Some(60)), Instant::now());
        let later = now + Duration::from_secs(3600);
        assert_eq!(tenant.check_tokens(later), Ok(()));
        tenant.charge(60);
        assert!(tenant.check_tokens(later).is_err());
    }

    #[test]
    fn other_limits_apply_at_once() {
        let (tenant, now) = (tenant(None, Some(10)), Instant::now());
        tenant.charge(100);
        assert!(tenant.check_tokens(now).is_err());
        tenant.set_limits(TenantLimits::default());
        assert_eq!(tenant.check_tokens(now), Ok(()));
        assert_eq!(tenant.limits(), TenantLimits::default());
    }
}
