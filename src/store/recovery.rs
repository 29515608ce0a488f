//! Which numbers a crash swallowed. Pure: the rule of the outbox depends on it, so its tests use the same code.

use ocelli_protocol::message::GapReason;

use crate::store::GapRow;

/// Ranges of `mark + 1..=reserved` that are in none of `covered`, oldest first.
///
/// `covered` are closed ranges (a row is a range of one), in any order, overlapping or not.
///
/// ```
/// # use ocelli::store::unaccounted;
/// assert_eq!(unaccounted(2, 9, vec![(4, 5), (8, 8)]), [(3, 3), (6, 7), (9, 9)]);
/// ```
#[must_use]
pub fn unaccounted(mark: u64, reserved: u64, mut covered: Vec<(u64, u64)>) -> Vec<(u64, u64)> {
    covered.sort_unstable();
    let mut missing = Vec::new();
    let mut next = mark.saturating_add(1);
    for (from, to) in covered {
        if from > reserved {
            break;
        }
        if from > next {
            missing.push((next, from - 1));
        }
        next = next.max(to.saturating_add(1));
    }
    if next <= reserved {
        missing.push((next, reserved));
    }
    missing
}

/// What the database says of numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ledger {
    /// No number above this was given while the database took writes.
    pub reserved: u64,
    /// Every number up to this was delivered, is a row, or lies in a gap.
    pub mark: u64,
}

/// What the second file says of numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HighWater {
    /// No number above this was given.
    pub ceiling: u64,
    /// Every number up to this was delivered or announced.
    pub settled: u64,
    /// Numbers above the database's own mark were given, because the database took no write.
    pub ahead: bool,
}

/// Accounts for every number given before this start: the new ledger, and gaps for what is lost.
///
/// `ledger` is `None` for a new database, which knows nothing of the past. `rows` and `gaps` are what it holds.
#[must_use]
pub fn account(
    ledger: Option<Ledger>,
    file: Option<HighWater>,
    rows: &[u64],
    gaps: &[GapRow],
) -> (Ledger, Vec<GapRow>) {
    let mut reason = GapReason::PowerLoss;
    let mut account = ledger.unwrap_or_default();
    if let Some(file) = file {
        if ledger.is_none() {
            account.mark = file.settled;
        }
        if ledger.is_none() || file.ahead {
            account.reserved = account.reserved.max(file.ceiling);
            reason = GapReason::Storage;
        }
    }
    let rows = rows.iter().map(|seq| (*seq, *seq));
    let covered = gaps.iter().map(|gap| (gap.from, gap.to)).chain(rows).collect();
    let lost = unaccounted(account.mark, account.reserved, covered)
        .into_iter()
        .map(|(from, to)| GapRow { from, to, reason })
        .collect();
    account.mark = account.reserved;
    (account, lost)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_exactly_what_is_not_covered() {
        type Case = (u64, u64, Vec<(u64, u64)>, Vec<(u64, u64)>);
        let cases: Vec<Case> = vec![
            (0, 0, vec![], vec![]),
            (0, 3, vec![], vec![(1, 3)]),
            (3, 3, vec![], vec![]),
            (5, 3, vec![], vec![]),
            (0, 3, vec![(1, 3)], vec![]),
            (0, 3, vec![(2, 2)], vec![(1, 1), (3, 3)]),
            (4, 9, vec![(1, 5), (7, 20)], vec![(6, 6)]),
            (0, 9, vec![(7, 8), (1, 4), (3, 5)], vec![(6, 6), (9, 9)]),
            (0, 9, vec![(20, 30)], vec![(1, 9)]),
        ];
        let wrong: Vec<_> = cases
            .iter()
            .map(|(mark, reserved, covered, want)| {
                (mark, reserved, unaccounted(*mark, *reserved, covered.clone()), want)
            })
            .filter(|(_, _, found, want)| found != *want)
            .collect();
        assert!(wrong.is_empty(), "{wrong:?}");
    }
}
