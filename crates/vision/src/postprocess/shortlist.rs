//! The best-scored cells of a picture's outputs, before their boxes are decoded; bounded.

/// Cells that go on to box decoding and suppression. Suppression compares pairs, so an image of noise that puts
/// every cell above the threshold must not reach it whole.
pub(super) const MOST_CANDIDATES: usize = 1000;

/// A cell and class above the threshold.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Entry {
    /// Logit or probability: only the order counts here.
    pub(super) score: f32,
    /// Index of the class.
    pub(super) class: usize,
    /// Which output.
    pub(super) map: usize,
    /// Cell within the output.
    pub(super) cell: usize,
}

/// Keeps the [`MOST_CANDIDATES`] best of any number of entries, in linear time and fixed memory.
pub(super) struct Shortlist {
    entries: Vec<Entry>,
    floor: f32,
}

impl Shortlist {
    pub(super) fn new() -> Self {
        Self { entries: Vec::with_capacity(2 * MOST_CANDIDATES), floor: f32::NEG_INFINITY }
    }

    pub(super) fn clear(&mut self) {
        self.entries.clear();
        self.floor = f32::NEG_INFINITY;
    }

    pub(super) fn push(&mut self, entry: Entry) {
        if entry.score <= self.floor {
            return;
        }
        self.entries.push(entry);
        if self.entries.len() == 2 * MOST_CANDIDATES {
            self.shorten();
        }
    }

    /// The best entries, in no order.
    pub(super) fn best(&mut self) -> &[Entry] {
        if self.entries.len() > MOST_CANDIDATES {
            self.shorten();
        }
        &self.entries
    }

    fn shorten(&mut self) {
        let (_, last, _) = self.entries.select_nth_unstable_by(MOST_CANDIDATES - 1, |a, b| {
            let place = |entry: &Entry| (entry.map, entry.class, entry.cell);
            b.score.total_cmp(&a.score).then(place(a).cmp(&place(b)))
        });
        self.floor = last.score;
        self.entries.truncate(MOST_CANDIDATES);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_best_of_very_many() {
        let mut shortlist = Shortlist::new();
        let capacity = shortlist.entries.capacity();
        for round in 0..2 {
            shortlist.clear();
            // A permutation of 0..100 003, so that good ones come late as well as early.
            for n in 0..100_003_u64 {
                let score = (n * 31_337 % 100_003) as f32;
                shortlist.push(Entry { score, class: 0, map: 0, cell: n as usize });
            }
            let mut scores: Vec<_> = shortlist.best().iter().map(|entry| entry.score).collect();
            scores.sort_unstable_by(f32::total_cmp);
            let expected: Vec<_> = (99_003..100_003).map(|score| score as f32).collect();
            assert_eq!(scores, expected, "round {round}");
        }
        assert_eq!(shortlist.entries.capacity(), capacity);
    }

    #[test]
    fn ties_do_not_grow_it() {
        let mut shortlist = Shortlist::new();
        for cell in 0..10_000 {
            shortlist.push(Entry { score: 1.0, class: 0, map: 0, cell });
        }
        assert_eq!(shortlist.best().len(), MOST_CANDIDATES);
    }
}
