use proptest::prelude::*;

use super::*;

const MS: Duration = Duration::from_millis(1);
/// How long a probe is waited for on a short path.
const WAIT: Duration = Duration::from_millis(100);
const UDP: u16 = 65_475;

/// One path in virtual time: what it carries, and what the gateway at its end takes.
struct World {
    mtu: PathMtu,
    now: Duration,
    carries: u16,
    told: u16,
    /// Other records arrive.
    alive: bool,
    /// Percent of probes and answers that are lost, whatever their size, and the state of the dice.
    loss: u64,
    dice: u64,
    /// Large packets flow.
    flowing: bool,
    probes: Vec<u16>,
    /// What the gateway last heard that the client takes.
    gateway: u16,
}

impl World {
    fn new(start: u16, carries: u16, told: u16) -> Self {
        Self {
            mtu: PathMtu::new(Duration::ZERO, start, None, MTU_MAX, UDP),
            now: Duration::ZERO,
            carries,
            told,
            alive: true,
            loss: 0,
            dice: 1,
            flowing: false,
            probes: Vec::new(),
            gateway: told,
        }
    }

    fn lost(&mut self) -> bool {
        self.dice = self.dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.dice >> 33) % 100 < self.loss
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            // Packets come every 50 ms while they flow.
            let tick = if self.flowing { self.now + MS * 50 } else { Duration::MAX };
            let next = self.mtu.timeout().min(tick);
            if next > end {
                self.now = end;
                return;
            }
            self.now = self.now.max(next);
            if self.flowing {
                let len = usize::from(self.mtu.mtu());
                self.mtu.carried(self.now, len);
            }
            let heard = if self.alive { self.now } else { Duration::ZERO };
            if let Some(Send { id, size, mtu }) = self.mtu.poll(self.now, WAIT, heard).send {
                self.probes.push(size);
                if self.alive && size <= self.carries && !self.lost() {
                    self.gateway = mtu;
                    if !self.lost() {
                        let len = size.min(self.told);
                        self.mtu.answered(self.now + MS, id, len, self.told);
                    }
                }
            }
        }
    }

    fn found(&self) -> u16 {
        self.mtu.mtu()
    }
}

#[test]
fn the_inner_mtu_rises_to_what_a_path_of_1400_bytes_carries_and_the_gateway_knows_it() {
    // 20 bytes of IPv4, 8 of UDP and 32 of a record are around it.
    let mut world = World::new(1280, 1340, 1360);
    world.run(Duration::from_secs(3));
    assert_eq!((world.found(), world.gateway, world.mtu.phase()), (1340, 1340, Phase::Complete));
    assert!(world.probes.len() < 20, "{:?}", world.probes);
}

#[test]
fn a_path_that_carries_everything_is_known_after_three_round_trips() {
    let mut world = World::new(1280, 1400, 1360);
    world.run(PathMtu::START_AFTER + WAIT / 2);
    assert_eq!((world.found(), world.gateway, world.probes.clone()), (1360, 1360, vec![1280, 1360, 1360]));
    world.run(Duration::from_secs(3600));
    assert_eq!(world.probes.len(), 3, "nothing flows, and there is nothing more to find");
}

#[test]
fn a_black_hole_under_large_packets_is_left_within_two_seconds_and_searched_below() {
    let mut world = World::new(1280, 1360, 1360);
    world.flowing = true;
    world.run(Duration::from_secs(10));
    assert_eq!(world.found(), 1360);
    world.carries = 1300;
    world.run(Duration::from_millis(1500));
    assert!(world.found() <= 1300 && world.gateway <= 1300, "{}", world.found());
    world.run(Duration::from_secs(5));
    assert_eq!((world.found(), world.gateway), (1300, 1300));
}

#[test]
fn doubts_are_followed_up_before_the_next_check_is_due_and_not_more_than_five_times_a_second() {
    let mut world = World::new(1280, 1360, 1360);
    world.run(Duration::from_secs(10));
    world.carries = 1300;
    world.mtu.doubt(world.now);
    world.run(WAIT * 5);
    assert_eq!(world.found(), 1280);
    let mut world = World::new(1280, 1360, 1360);
    world.run(Duration::from_secs(10));
    world.probes.clear();
    for _ in 0..1000 {
        world.mtu.doubt(world.now);
        world.run(MS);
    }
    assert!(world.probes.len() <= 6, "{} probes", world.probes.len());
    assert_eq!(world.found(), 1360, "doubts alone lower nothing");
}

#[test]
fn a_path_that_brings_nothing_at_all_tells_nothing_about_sizes() {
    let mut world = World::new(1280, 1360, 1360);
    world.flowing = true;
    world.run(Duration::from_secs(10));
    world.alive = false;
    world.run(Duration::from_secs(10));
    assert_eq!(world.found(), 1360);
    assert!(world.probes.len() < 150, "{} probes", world.probes.len());
    world.alive = true;
    world.run(Duration::from_secs(2));
    assert_eq!((world.found(), world.mtu.phase()), (1360, Phase::Complete));
}

#[test]
fn a_gateway_that_answers_briefly_keeps_what_the_attach_gave() {
    for (start, found) in [(1280, None), (1420, None), (1280, Some(1340))] {
        let mut mtu = PathMtu::new(Duration::ZERO, start, found, MTU_MAX, UDP);
        let now = Duration::from_secs(1);
        let sent = mtu.poll(now, WAIT, now).send.expect("a probe");
        mtu.answered_briefly(1);
        assert_ne!(mtu.phase(), Phase::Off, "a ping's answer is not a probe's");
        mtu.answered_briefly(sent.id);
        assert_eq!((mtu.mtu(), mtu.phase(), mtu.timeout()), (start, Phase::Off, Duration::MAX));
        mtu.moved(now, Some(4064));
        mtu.doubt(now);
        assert_eq!((mtu.mtu(), mtu.poll(now, WAIT, now)), (start, Step::default()));
    }
}

#[test]
fn a_size_that_the_attach_gave_and_the_path_does_not_carry_is_left_for_the_floor() {
    let mut world = World::new(1420, 1300, 1500);
    world.run(WAIT * 4 + MS * 10);
    assert_eq!((world.found(), world.gateway), (1280, 1280));
    world.run(Duration::from_secs(3));
    assert_eq!(world.found(), 1300);
}

#[test]
fn a_gateway_that_takes_less_than_was_found_elsewhere_is_believed() {
    let mut world = World::new(1400, 1400, 1300);
    world.run(Duration::from_secs(1));
    assert_eq!((world.found(), world.gateway), (1300, 1300));
    // One that contradicts itself, or takes less than the floor, ends the discovery.
    for (len, told) in [(1000, 1400), (1000, 1000)] {
        let mut mtu = PathMtu::new(Duration::ZERO, 1400, None, MTU_MAX, UDP);
        let id = mtu.poll(Duration::ZERO, WAIT, MS).send.expect("a probe").id;
        mtu.answered(MS, id, len, told);
        assert_eq!((mtu.mtu(), mtu.phase()), (1400, Phase::Off));
    }
}

#[test]
fn not_even_the_floor_passing_is_told_and_asked_again() {
    let mut world = World::new(1280, 1200, 1360);
    world.run(Duration::from_secs(3));
    assert_eq!((world.found(), world.mtu.phase()), (1280, Phase::Unconfirmed));
    world.carries = 1360;
    world.run(PathMtu::RAISE_AFTER);
    assert_eq!((world.found(), world.mtu.phase()), (1360, Phase::Complete));
}

#[test]
fn another_path_of_the_transport_is_asked_at_once_and_another_transport_starts_from_the_floor() {
    let mut world = World::new(1280, 1360, 1360);
    world.run(Duration::from_secs(3));
    world.mtu.moved(world.now, None);
    assert_eq!((world.found(), world.mtu.timeout()), (1360, world.now));
    world.mtu.moved(world.now, Some(1344));
    assert_eq!(world.found(), 1280);
    world.run(Duration::from_secs(3));
    assert_eq!(world.found(), 1344, "the most that the transport takes");
}

#[test]
fn a_path_that_carries_more_later_is_used_after_the_raise_time() {
    let mut world = World::new(1280, 1300, 1360);
    world.run(Duration::from_secs(10));
    assert_eq!(world.found(), 1300);
    world.carries = 1360;
    world.flowing = true;
    world.run(PathMtu::RAISE_AFTER);
    assert_eq!((world.found(), world.gateway), (1360, 1360), "the checks must not put it off");
}

#[test]
fn this_sides_own_bound_is_kept() {
    let mut world = World::new(1280, 9000, 9000);
    world.mtu = PathMtu::new(Duration::ZERO, 1280, None, 1300, UDP);
    world.run(Duration::from_secs(5));
    assert_eq!((world.found(), world.probes.iter().max()), (1300, Some(&1300)));
}

proptest! {
    #[test]
    fn a_search_ends_within_the_grain_below_what_passes(carries in 1280..=9000u16, told in 1280..=9000u16) {
        let mut world = World::new(1280, carries, told);
        world.run(Duration::from_secs(10));
        let most = carries.min(told);
        prop_assert!(world.found() <= most && most - world.found() < PathMtu::GRAIN, "{} of {most}", world.found());
        prop_assert_eq!(world.gateway, world.found());
        prop_assert_eq!(world.mtu.phase(), Phase::Complete);
        prop_assert!(world.probes.len() < 60, "{} probes", world.probes.len());
    }

    #[test]
    fn in_any_weather_the_mtu_stays_in_its_bounds_and_probes_are_few(
        weather in proptest::collection::vec((1200..1500u16, 0..60u64, any::<bool>(), any::<bool>(), 0..5000u64), 1..20),
        dice in 1u64..,
    ) {
        let mut world = World::new(1280, 1400, 1400);
        world.dice = dice;
        for (carries, loss, alive, flowing, time) in weather {
            (world.carries, world.loss, world.alive, world.flowing) = (carries, loss, alive, flowing);
            world.run(MS * u32::try_from(time).unwrap());
            prop_assert!((1280..=1400).contains(&world.found()));
        }
        let seconds = world.now.as_secs() as usize + 1;
        prop_assert!(world.probes.len() <= 40 + seconds * 12, "{} probes in {seconds} s", world.probes.len());
        // Calm again, it finds what the path carries.
        (world.carries, world.loss, world.alive, world.flowing) = (1360, 0, true, true);
        world.run(Duration::from_secs(1300));
        prop_assert_eq!(world.found(), 1360);
    }
}
