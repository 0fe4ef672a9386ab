//! Bounds the bytes of all request bodies together, before requests are admitted.
//!
//! The first bytes of every body are free, so that small requests never wait for large ones or are refused for them.
//! The rest of a body is taken from one budget until its request has been tokenized. When the budget is used up, large
//! requests are answered 429.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use axum::BoxError;
use axum::body::Bytes;
use http_body::Frame;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Number of bytes of a body that are free.
pub const FREE_BYTES: usize = 64 * 1024;

/// Minimum budget. It is raised to a multiple of the largest body if that is more.
const MIN_BUDGET_BYTES: usize = 64 << 20;
const LARGEST_BODIES: usize = 4;

tokio::task_local! {
    /// Ticket of the request that the current task handles.
    static CURRENT: Ticket;
}

/// The budget that all requests share. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Intake(Arc<Semaphore>);

impl Intake {
    /// `largest_bytes`: the largest body that is accepted.
    pub fn new(largest_bytes: usize) -> Self {
        let budget = largest_bytes
            .saturating_mul(LARGEST_BODIES)
            .clamp(MIN_BUDGET_BYTES, Semaphore::MAX_PERMITS);
        Intake(Arc::new(Semaphore::new(budget)))
    }

    /// Makes an empty ticket for one request.
    pub fn ticket(&self) -> Ticket {
        Ticket(Arc::new(Mutex::new(Taken {
            budget: self.0.clone(),
            bytes: 0,
            permit: None,
        })))
    }
}

/// Bytes of the budget that one request holds. They are given back when the last clone is dropped, or earlier.
#[derive(Debug, Clone)]
pub struct Ticket(Arc<Mutex<Taken>>);

#[derive(Debug)]
struct Taken {
    budget: Arc<Semaphore>,
    /// All bytes that were requested.
    bytes: usize,
    permit: Option<OwnedSemaphorePermit>,
}

impl Ticket {
    /// Takes `bytes` more. Returns false when the budget is used up.
    pub fn take(&self, bytes: usize) -> bool {
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let free = FREE_BYTES.saturating_sub(taken.bytes);
        taken.bytes = taken.bytes.saturating_add(bytes);
        let Ok(charged) = u32::try_from(bytes.saturating_sub(free)) else {
            return false;
        };
        if charged == 0 {
            return true;
        }
        match taken.budget.clone().try_acquire_many_owned(charged) {
            Err(_) => false,
            Ok(more) => {
                match &mut taken.permit {
                    Some(permit) => permit.merge(more),
                    none => *none = Some(more),
                }
                true
            }
        }
    }

    /// Number of requested bytes: the body's size, once it has been read.
    pub fn bytes(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).bytes
    }

    /// Gives all bytes back. The body and its products were dropped, or are bounded by admission.
    pub fn release(&self) {
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        taken.permit = None;
    }

    /// Runs the handler of this ticket's request, in which [`Ticket::current`] gives it.
    pub async fn while_handling<F: Future>(self, handler: F) -> F::Output {
        CURRENT.scope(self, handler).await
    }

    /// The ticket of the request that the current task handles, if it came over a connection.
    pub fn current() -> Option<Self> {
        CURRENT.try_with(Ticket::clone).ok()
    }
}

/// Gives back the bytes of the current task's request, once it has been tokenized.
pub fn release_current() {
    if let Some(ticket) = Ticket::current() {
        ticket.release();
    }
}

/// Error of a budget that is used up.
#[derive(Debug, thiserror::Error)]
#[error("Model is overloaded: the server is busy with other large requests")]
pub struct Busy;

/// A body whose bytes are taken from the budget as they are read. The decompressed bytes count, since the handler
/// gets those.
pub struct Counted<B> {
    body: B,
    ticket: Option<Ticket>,
}

impl<B> Counted<B> {
    /// Makes the body of the current task's request.
    pub fn new(body: B) -> Self {
        Counted {
            body,
            ticket: Ticket::current(),
        }
    }
}

impl<B> http_body::Body for Counted<B>
where
    B: http_body::Body<Data = Bytes, Error = BoxError> + Unpin,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        if let (Some(Ok(frame)), Some(ticket)) = (&frame, &self.ticket)
            && !ticket.take(frame.data_ref().map_or(0, Bytes::len))
        {
            return Poll::Ready(Some(Err(Box::new(Busy))));
        }
        Poll::Ready(frame)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_bodies_are_taken_when_the_budget_is_used_up() {
        let intake = Intake::new(1000);
        let large = intake.ticket();
        assert!(large.take(FREE_BYTES + MIN_BUDGET_BYTES));
        let (small, other) = (intake.ticket(), intake.ticket());
        assert!(small.take(FREE_BYTES));
        assert!(!small.take(1));
        assert!(!other.take(FREE_BYTES + 1));
        large.release();
        assert!(small.take(MIN_BUDGET_BYTES));
        assert_eq!(small.bytes(), FREE_BYTES + 1 + MIN_BUDGET_BYTES);
        drop(small);
        assert!(other.take(MIN_BUDGET_BYTES));
    }

    #[tokio::test]
    async fn a_handler_finds_its_ticket() {
        assert!(Ticket::current().is_none());
        let intake = Intake::new(1000);
        let ticket = intake.ticket();
        assert!(ticket.take(FREE_BYTES + MIN_BUDGET_BYTES));
        ticket.while_handling(async { release_current() }).await;
        assert!(intake.ticket().take(FREE_BYTES + MIN_BUDGET_BYTES));
    }
}
