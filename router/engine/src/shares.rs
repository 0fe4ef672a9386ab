//! Fair shares of tenants in a queue.
//!
//! Each waiting item has a turn, and the lowest turn goes first. A tenant's turns grow with the tokens that its items
//! ask for, and none begins below the turns that were started last, so that waiting earns no credit (start-time fair
//! queueing: Goyal, Vin and Cheng, SIGCOMM 1996). The turns of a single tenant grow with arrival: without several
//! tenants the order is first come, first served.

use std::collections::HashMap;

/// Place in a queue: lower ones go first.
pub(crate) type Turn = u64;

/// Turns of all tenants.
#[derive(Debug, Default)]
pub(crate) struct Shares {
    /// Highest turn that was started.
    now: Turn,
    tenants: HashMap<Option<u32>, Share>,
}

/// Turns of one tenant.
#[derive(Debug, Default, Clone, Copy)]
struct Share {
    /// Turn of its latest item.
    last: Turn,
    /// Turn of its next item, unless others are further.
    next: Turn,
}

impl Shares {
    /// Turn of another item of a tenant, which may use `num_tokens`.
    pub fn turn(&mut self, tenant: Option<u32>, num_tokens: usize) -> Turn {
        let share = self.tenants.entry(tenant).or_default();
        let turn = share.next.max(self.now);
        *share = Share {
            last: turn,
            next: turn.saturating_add(num_tokens as Turn),
        };
        turn
    }

    /// Notes that an item is started.
    pub fn started(&mut self, turn: Turn) {
        self.now = self.now.max(turn);
    }

    /// Gives back tokens that an item asked for and did not use. Its tenant's later items never come before earlier ones.
    pub fn give_back(&mut self, tenant: Option<u32>, num_tokens: usize) {
        if let Some(share) = self.tenants.get_mut(&tenant) {
            share.next = share
                .next
                .saturating_sub(num_tokens as Turn)
                .max(share.last);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Option<u32> = Some(0);
    const B: Option<u32> = Some(1);

    #[test]
    fn one_tenant_is_served_in_the_order_of_arrival() {
        let mut shares = Shares::default();
        let turns: Vec<Turn> = [5, 0, 900, 1]
            .map(|num_tokens| {
                let turn = shares.turn(None, num_tokens);
                shares.give_back(None, 400);
                turn
            })
            .into();
        assert!(turns.is_sorted(), "{turns:?}");
    }

    #[test]
    fn a_second_tenant_goes_before_the_rest_of_a_long_queue() {
        let mut shares = Shares::default();
        let many: Vec<Turn> = (0..10).map(|_| shares.turn(A, 100)).collect();
        shares.started(many[0]);
        shares.started(many[1]);
        let late = shares.turn(B, 100);
        assert!(many[1] <= late && late < many[2], "{late} {many:?}");
        let next = shares.turn(B, 100);
        assert!(many[2] <= next && next < many[3], "they take turns");
    }

    #[test]
    fn waiting_earns_no_credit() {
        let mut shares = Shares::default();
        for _ in 0..100 {
            let turn = shares.turn(A, 100);
            shares.started(turn);
        }
        let first = shares.turn(B, 100);
        let second = shares.turn(B, 100);
        let other = shares.turn(A, 100);
        assert!(
            first <= other && other < second + 100,
            "{first} {other} {second}"
        );
    }

    #[test]
    fn unused_tokens_are_given_back() {
        let mut shares = Shares::default();
        let first = shares.turn(A, 1000);
        shares.give_back(A, 990);
        assert_eq!(shares.turn(A, 1000), first + 10);
    }
}
