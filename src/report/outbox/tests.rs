//! The rule under everything that can happen: a model of store and broker, random interleavings, crashes anywhere.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use proptest::prelude::*;

use super::*;
use crate::clock::{Clock, SystemClock};
use crate::store::{HighWater, Ledger, account};

const WALL: UnixTime = UnixTime::from_micros(1_795_000_000_000_000);

/// The disk: what a power cut leaves.
#[derive(Debug, Clone, Default)]
struct Disk {
    ledger: Option<Ledger>,
    file: Option<HighWater>,
    rows: BTreeMap<u64, OutboxRow>,
    gaps: BTreeMap<u64, GapRow>,
}

impl Disk {
    fn apply(&mut self, batch: &Batch) {
        self.file =
            Some(HighWater { ceiling: batch.ceiling, settled: batch.settled, ahead: false });
        for row in &batch.append {
            self.rows.insert(row.seq, row.clone());
        }
        for seq in &batch.delete {
            self.rows.remove(seq);
        }
        for gap in &batch.put_gaps {
            self.gaps.insert(gap.from, *gap);
        }
        for from in &batch.delete_gaps {
            self.gaps.remove(from);
        }
        self.ledger = Some(Ledger { reserved: batch.reserved, mark: batch.mark });
    }

    /// A full disk: only the second file, whose space is taken already, can be written.
    fn apply_to_full(&mut self, batch: &Batch) {
        self.file = Some(HighWater { ceiling: batch.ceiling, settled: batch.settled, ahead: true });
    }

    fn recover(&mut self) -> Recovered {
        let recovered = self.recover_from(self.file);
        let ceiling = self.file.map_or(0, |file| file.ceiling).max(recovered.next_seq - 1);
        let first = self.rows.keys().chain(self.gaps.keys()).min();
        let settled = first.map_or(recovered.next_seq - 1, |first| first - 1);
        self.file = Some(HighWater { ceiling, settled, ahead: false });
        recovered
    }

    fn recover_from(&mut self, file: Option<HighWater>) -> Recovered {
        let rows: Vec<_> = self.rows.keys().copied().collect();
        let gaps: Vec<_> = self.gaps.values().copied().collect();
        let (ledger, lost) = account(self.ledger, file, &rows, &gaps);
        self.gaps.extend(lost.into_iter().map(|gap| (gap.from, gap)));
        self.ledger = Some(ledger);
        Recovered {
            next_seq: ledger.reserved + 1,
            known: true,
            gaps: self.gaps.values().copied().collect(),
            rows: self.rows.len() as u64,
            bytes: self.rows.values().map(|row| row.payload.len() as u64).sum(),
            first_row: self.rows.keys().next().copied(),
            last_row: self.rows.keys().next_back().copied(),
            notes: Vec::new(),
        }
    }
}

/// What a subscriber saw.
#[derive(Debug, Default)]
struct Subscriber {
    /// Numbers in order of their first arrival.
    arrived: Vec<u64>,
    known: BTreeSet<u64>,
    gaps: BTreeSet<(u64, u64)>,
}

struct World {
    settings: OutboxSettings,
    outbox: Outbox,
    disk: Disk,
    subscriber: Subscriber,
    /// Sent, not yet acknowledged, oldest first.
    wire: VecDeque<Item>,
    batch: Option<Batch>,
    load: Option<Load>,
    now: Instant,
    up: bool,
    given: BTreeSet<u64>,
    full: bool,
    /// What the database holds of earlier runs, told once it can be opened.
    found: Option<Recovered>,
}

#[derive(Debug, Clone)]
enum Step {
    Push(u8),
    Connect,
    Disconnect,
    Send(u8),
    Ack(u8),
    Commit,
    Page,
    Wait(u16),
    /// Power cut; the batch under way reached the disk, or not.
    Crash(bool),
    FillDisk,
    FreeDisk,
    /// Orderly end and start.
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (1..40u8).prop_map(Step::Push),
        2 => Just(Step::Connect),
        1 => Just(Step::Disconnect),
        8 => (1..80u8).prop_map(Step::Send),
        8 => (1..80u8).prop_map(Step::Ack),
        8 => Just(Step::Commit),
        4 => Just(Step::Page),
        4 => (0..3000u16).prop_map(Step::Wait),
        1 => any::<bool>().prop_map(Step::Crash),
        1 => Just(Step::Restart),
    ]
}

fn step_with_full_disk() -> impl Strategy<Value = Step> {
    prop_oneof![12 => step(), 1 => Just(Step::FillDisk), 2 => Just(Step::FreeDisk)]
}

impl World {
    fn new(settings: OutboxSettings) -> Self {
        let mut disk = Disk::default();
        let recovered = disk.recover();
        let now = SystemClock.now();
        Self {
            outbox: Outbox::new(settings.clone(), &recovered, WALL, now),
            settings,
            disk,
            subscriber: Subscriber::default(),
            wire: VecDeque::new(),
            batch: None,
            load: None,
            now,
            up: false,
            given: BTreeSet::new(),
            full: false,
            found: None,
        }
    }

    /// A power cut, then a start at which the database cannot be opened.
    fn start_without_database(&mut self) {
        (self.batch, self.load, self.up) = (None, None, false);
        self.wire.clear();
        let next_seq = self.disk.file.map_or(1, |file| file.ceiling + 1);
        let recovered = Recovered { next_seq, known: false, ..Recovered::default() };
        self.outbox = Outbox::new(self.settings.clone(), &recovered, WALL, self.now);
        self.full = true;
        self.ask();
    }

    /// It can be opened now, and is as it was at the start.
    fn open_database(&mut self) {
        let file = self.disk.file.map(|file| HighWater { ahead: true, ..file });
        self.found = Some(self.disk.recover_from(file));
        self.full = false;
        self.now += Duration::from_secs(6);
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Push(count) => self.push(*count),
            Step::Connect => {
                self.up = true;
                self.wire.clear();
                self.outbox.connected(self.now);
            }
            Step::Disconnect => {
                self.up = false;
                self.wire.clear();
                self.outbox.disconnected(self.now);
            }
            Step::Send(count) => self.send(*count),
            Step::Ack(count) => {
                for item in self.wire.drain(..usize::from(*count).min(self.wire.len())) {
                    self.outbox.acked(item, self.now);
                }
            }
            Step::Commit => self.commit(),
            Step::Page => self.page(),
            Step::Wait(milliseconds) => self.now += Duration::from_millis(u64::from(*milliseconds)),
            Step::Crash(committed) => {
                if let Some(batch) = self.batch.take().filter(|_| *committed && !self.full) {
                    self.disk.apply(&batch);
                }
                self.start();
            }
            Step::FillDisk => self.full = true,
            Step::FreeDisk => self.full = false,
            Step::Restart => {
                self.outbox.close();
                self.now += Duration::from_secs(6);
                for _ in 0..40 {
                    self.commit();
                }
                assert!(
                    self.full || self.outbox.is_durable(),
                    "a closed outbox must reach the disk"
                );
                self.start();
            }
        }
        self.ask();
    }

    fn start(&mut self) {
        self.batch = None;
        self.load = None;
        self.wire.clear();
        self.up = false;
        let recovered = self.disk.recover();
        self.outbox = Outbox::new(self.settings.clone(), &recovered, WALL, self.now);
    }

    fn ask(&mut self) {
        if self.batch.is_none() {
            self.batch = self.outbox.next_batch(self.now);
        }
        if self.load.is_none() {
            self.load = self.outbox.next_load(self.now);
        }
    }

    fn push(&mut self, count: u8) {
        for _ in 0..count {
            if self.outbox.can_accept() {
                let seq = self.outbox.next_seq();
                self.given.insert(seq);
                let payload = seq.to_be_bytes().repeat(4);
                self.outbox.push("t".into(), payload.into(), WALL, self.now);
            }
            self.ask();
        }
    }

    fn send(&mut self, count: u8) {
        for _ in 0..count {
            let Some(message) = self.outbox.next_publish() else { return };
            let item = match message {
                Message::Result(row) => {
                    assert_eq!(
                        row.payload[..8],
                        row.seq.to_be_bytes(),
                        "payload of another number"
                    );
                    if self.settings.durability == Durability::Results && !self.outbox.is_degraded()
                    {
                        assert!(
                            self.disk.rows.contains_key(&row.seq),
                            "{} was sent before it was stored",
                            row.seq
                        );
                    }
                    if self.subscriber.known.insert(row.seq) {
                        self.subscriber.arrived.push(row.seq);
                    }
                    Item::Result(row.seq)
                }
                Message::Gap(gap) => {
                    self.subscriber.gaps.insert((gap.from, gap.to));
                    Item::Gap(gap.from)
                }
            };
            self.wire.push_back(item);
            assert!(self.wire.len() <= self.settings.window, "window overrun");
        }
    }

    fn commit(&mut self) {
        self.ask();
        let Some(batch) = self.batch.take() else { return };
        let outcome = if self.full {
            self.disk.apply_to_full(&batch);
            Err(StoreError::Unavailable { path: "model".into(), detail: "full".into() })
        } else {
            self.disk.apply(&batch);
            Ok(())
        };
        let found = if outcome.is_ok() { self.found.take() } else { None };
        let applied = Applied { outcome, ceiling: batch.ceiling, found };
        self.outbox.batch_done(&applied, WALL, self.now);
    }

    fn page(&mut self) {
        let Some(load) = self.load.take() else { return };
        let rows =
            self.disk.rows.range(load.after + 1..).take(load.limit).map(|(_, row)| row.clone());
        self.outbox.loaded(Ok(rows.collect()), self.now);
    }

    /// Everything works again: the outbox must empty itself.
    fn drain(&mut self) {
        self.full = false;
        self.step(&Step::Connect);
        for _ in 0..400 {
            self.now += Duration::from_secs(1);
            for step in [Step::Commit, Step::Page, Step::Send(80), Step::Ack(80)] {
                self.step(&step);
            }
        }
        assert!(self.outbox.is_delivered(), "the outbox did not empty: {:?}", self.outbox.state());
    }

    fn check_rule(&self) {
        let order = self.subscriber.arrived.windows(2).find(|pair| pair[0] >= pair[1]);
        assert_eq!(order, None, "out of order");
        self.check_account();
    }

    fn check_account(&self) {
        let mut last = 0;
        for (from, to) in &self.subscriber.gaps {
            assert!(*from > last && to >= from, "gaps overlap: {:?}", self.subscriber.gaps);
            last = *to;
        }
        let mut seq = 1;
        while seq < self.outbox.next_seq() {
            let mut gaps = self.subscriber.gaps.iter();
            let announced = gaps.find(|(from, to)| (from..=to).contains(&&seq));
            assert!(
                self.subscriber.known.contains(&seq) || announced.is_some(),
                "{seq} neither arrived nor was announced"
            );
            seq = announced.map_or(seq, |(_, to)| *to) + 1;
        }
    }
}

fn settings(durability: Durability, overflow: Overflow, max_bytes: u64) -> OutboxSettings {
    OutboxSettings { durability, overflow, max_bytes, ..OutboxSettings::default() }
}

fn run(settings: OutboxSettings, steps: &[Step]) -> World {
    let mut world = World::new(settings);
    world.ask();
    for step in steps {
        world.step(step);
    }
    world.drain();
    world.check_rule();
    world
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    #[test]
    fn results_are_never_lost_nor_announced(steps in prop::collection::vec(step(), 1..200)) {
        let world = run(settings(Durability::Results, Overflow::DropOldest, 64 << 20), &steps);
        prop_assert!(world.subscriber.gaps.is_empty(), "{:?}", world.subscriber.gaps);
    }

    #[test]
    fn spill_announces_every_hole_once(steps in prop::collection::vec(step(), 1..200)) {
        run(settings(Durability::Spill, Overflow::DropOldest, 64 << 20), &steps);
    }

    #[test]
    fn a_small_outbox_announces_what_it_drops(spill in any::<bool>(), steps in prop::collection::vec(step(), 1..200)) {
        let durability = if spill { Durability::Spill } else { Durability::Results };
        run(settings(durability, Overflow::DropOldest, 4000), &steps);
    }

    #[test]
    fn a_blocking_outbox_drops_nothing(steps in prop::collection::vec(step(), 1..200)) {
        let world = run(settings(Durability::Results, Overflow::Block, 4000), &steps);
        prop_assert!(world.subscriber.gaps.is_empty());
    }

    #[test]
    fn a_full_disk_keeps_the_rule_until_it_is_free(
        spill in any::<bool>(), steps in prop::collection::vec(step_with_full_disk(), 1..200)
    ) {
        // A crash in that time may repeat an announcement that the disk could not note; without crashes the rule is whole.
        let steps: Vec<_> = steps.into_iter().filter(|step| !matches!(step, Step::Crash(_) | Step::Restart)).collect();
        let durability = if spill { Durability::Spill } else { Durability::Results };
        run(settings(durability, Overflow::DropOldest, 64 << 20), &steps);
    }

    #[test]
    fn a_database_that_opens_late_loses_nothing_of_this_run_nor_of_the_last(
        spill in any::<bool>(),
        before in prop::collection::vec(step(), 1..60),
        without in prop::collection::vec(step(), 1..60),
        after in prop::collection::vec(step(), 1..60),
    ) {
        let durability = if spill { Durability::Spill } else { Durability::Results };
        let mut world = World::new(settings(durability, Overflow::DropOldest, 64 << 20));
        world.ask();
        let alive = |step: &&Step| !matches!(step, Step::Crash(_) | Step::Restart);
        before.iter().for_each(|step| world.step(step));
        let database = world.disk.clone();
        world.start_without_database();
        let first = world.outbox.next_seq();
        without.iter().filter(alive).for_each(|step| world.step(step));
        world.disk = database;
        world.open_database();
        after.iter().filter(alive).for_each(|step| world.step(step));
        world.drain();
        world.check_account();
        // Each run in its own order; what the last one left comes behind what was sent meanwhile.
        let of_this = |seq: &&u64| **seq >= first;
        let order: Vec<_> = world.subscriber.arrived.iter().filter(of_this).collect();
        prop_assert!(order.is_sorted(), "{order:?}");
    }

    #[test]
    fn a_number_is_never_given_twice(spill in any::<bool>(), steps in prop::collection::vec(step_with_full_disk(), 1..200)) {
        let durability = if spill { Durability::Spill } else { Durability::Results };
        let mut world = World::new(settings(durability, Overflow::DropOldest, 64 << 20));
        world.ask();
        let mut highest_sent = 0;
        for step in &steps {
            let before = world.outbox.next_seq();
            world.step(step);
            highest_sent = highest_sent.max(world.subscriber.arrived.last().copied().unwrap_or(0));
            if matches!(step, Step::Crash(_) | Step::Restart) {
                prop_assert!(world.outbox.next_seq() > highest_sent, "would give {highest_sent} again");
            } else {
                prop_assert!(world.outbox.next_seq() >= before);
            }
        }
    }
}

fn filled(durability: Durability, count: usize) -> World {
    let mut world = World::new(settings(durability, Overflow::DropOldest, 64 << 20));
    world.step(&Step::Commit);
    for _ in 0..count.div_ceil(32) {
        world.step(&Step::Push(32));
        world.step(&Step::Commit);
    }
    world
}

#[test]
fn spill_writes_no_row_while_the_broker_acknowledges() {
    let mut world = World::new(settings(Durability::Spill, Overflow::DropOldest, 64 << 20));
    world.step(&Step::Commit);
    world.step(&Step::Connect);
    for _ in 0..200 {
        for step in [Step::Push(10), Step::Send(10), Step::Ack(10), Step::Commit, Step::Wait(100)] {
            world.step(&step);
        }
        assert!(world.disk.rows.is_empty());
    }
    assert_eq!(world.subscriber.arrived.len(), 2000);
}

#[test]
fn spill_goes_to_the_store_when_the_broker_stays_away() {
    let mut world = filled(Durability::Spill, 32);
    assert!(world.disk.rows.is_empty());
    world.step(&Step::Wait(2500));
    world.step(&Step::Commit);
    assert_eq!(world.disk.rows.len(), 32);
}

#[test]
fn a_long_absence_is_bounded_in_memory_and_replayed_in_order() {
    let mut world = filled(Durability::Spill, 5000);
    world.step(&Step::Wait(5000));
    for _ in 0..20 {
        world.step(&Step::Commit);
    }
    assert!(world.outbox.window.len() + world.outbox.staging.len() <= 2 * MEMORY_ROWS);
    assert!(world.disk.rows.len() > 4000);
    world.drain();
    world.check_rule();
    assert!(world.subscriber.gaps.is_empty());
    assert_eq!(world.subscriber.arrived.len(), world.given.len());
    assert!(world.disk.rows.is_empty(), "delivered rows stay in the store");
}

#[test]
fn an_unacknowledged_gap_is_sent_again_after_each_crash_and_stays_the_same() {
    let mut world = filled(Durability::Spill, 32);
    let mut seen = BTreeSet::new();
    for _ in 0..3 {
        world.step(&Step::Crash(false));
        world.step(&Step::Connect);
        world.step(&Step::Send(80));
        seen.extend(world.subscriber.gaps.clone());
    }
    assert_eq!(seen.len(), 1, "{seen:?}");
}

#[test]
fn expires_by_age_but_never_across_a_clock_that_was_not_set() {
    let week = Duration::from_secs(7 * 24 * 3600 + 1);
    for (entered, dropped) in [(WALL, 1), (UnixTime::from_micros(5), 0)] {
        let mut world = World::new(settings(Durability::Spill, Overflow::DropOldest, 64 << 20));
        world.step(&Step::Commit);
        world.outbox.push("t".into(), [0; 8].into(), entered, world.now);
        world.outbox.expire(UnixTime::from_micros(WALL.as_micros() + week.as_micros() as u64));
        assert_eq!(world.outbox.state().dropped, dropped, "entered at {entered}");
    }
}

#[test]
fn a_lost_store_announces_the_tail_and_writes_the_rest_again() {
    let mut world = filled(Durability::Results, 2000);
    let next = world.outbox.next_seq();
    let lost = StoreError::Lost { path: "p".into(), detail: "d".into(), kept: "k".into() };
    world.step(&Step::Push(1));
    world.disk = Disk { file: world.disk.file, ..Disk::default() };
    world.batch = None;
    world.outbox.batch_done(
        &Applied { outcome: Err(lost), ceiling: next, found: None },
        WALL,
        world.now,
    );
    world.load = None;
    world.outbox.loading = false;
    world.drain();
    world.check_rule();
    assert_eq!(world.subscriber.gaps.len(), 1);
    assert!(world.outbox.next_seq() >= next);
}

#[test]
fn with_nothing_readable_numbers_come_from_the_clock() {
    let recovered = Recovered { next_seq: 1, known: false, ..Recovered::default() };
    let outbox = Outbox::new(OutboxSettings::default(), &recovered, WALL, SystemClock.now());
    assert_eq!(outbox.next_seq(), WALL.as_micros() / 1000);
}
