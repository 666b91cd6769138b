//! A simulated disk with a volatile write cache, and the images that a power loss could leave of it.

use std::io::{Error, ErrorKind};
use std::sync::{Arc, Mutex, MutexGuard};

use redb::StorageBackend;

/// The unit that a disk writes atomically, in bytes.
const SECTOR: usize = 512;

/// A deterministic random number generator: splitmix64.
#[derive(Clone, Debug)]
pub(super) struct Rng(pub(super) u64);

impl Rng {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`, which is not 0.
    pub(super) fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(n).unwrap()).unwrap()
    }

    pub(super) fn percent(&mut self, often: usize) -> bool {
        self.below(100) < often
    }

    pub(super) fn pick<T: Clone>(&mut self, items: &[T]) -> T {
        items[self.below(items.len())].clone()
    }
}

/// The disk; clones share it.
#[derive(Clone)]
pub(super) struct Disk(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    /// The content that readers see.
    current: Vec<u8>,
    /// The content that certainly survives a power loss.
    durable: Vec<u8>,
    /// The operations that are not synced yet, oldest first.
    pending: Vec<Pending>,
    lies: bool,
    /// After this many calls all calls fail; never if unset.
    calls_left: Option<usize>,
    probe: Option<Probe>,
}

enum Pending {
    Write { offset: usize, data: Vec<u8> },
    SetLen(usize),
}

/// Simulates power losses at random calls, and collects the images.
struct Probe {
    rng: Rng,
    percent: usize,
    known: Arc<dyn Fn() -> usize + Send + Sync>,
    images: Vec<Image>,
}

/// The image that a power loss left.
pub(super) struct Image {
    /// The number of changes that were known to be durable before the power loss.
    pub(super) known: usize,
    pub(super) bytes: Vec<u8>,
}

/// Which of the pending operations survive.
#[derive(Clone, Copy)]
enum Survival {
    Nothing,
    Everything,
    /// A prefix of them, with a torn last write.
    Prefix(usize),
    /// Each whole write independently, with this probability in percent.
    Writes(usize),
    /// Each sector independently.
    Sectors(usize),
    /// Only the file's first sector, which publishes the new root, without what it points to.
    FirstSector,
    /// Everything except the first sector.
    AllButFirstSector,
}

impl Disk {
    pub(super) fn new(bytes: Vec<u8>) -> Self {
        let state = State { current: bytes.clone(), durable: bytes, ..State::default() };
        Self(Arc::new(Mutex::new(state)))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// From now on, syncs succeed without doing anything.
    pub(super) fn lie(&self) {
        self.state().lies = true;
    }

    /// After this many more modifying calls, all of them fail.
    pub(super) fn fail_after(&self, calls: usize) {
        self.state().calls_left = Some(calls);
    }

    /// An image that a power loss could leave now.
    pub(super) fn after_power_loss(&self, rng: &mut Rng) -> Vec<u8> {
        self.state().after_power_loss(rng)
    }

    /// From now on, takes an image at this percentage of calls. `known` is called before: what it
    /// counts must be in the image.
    pub(super) fn probe(
        &self,
        rng: Rng,
        percent: usize,
        known: Arc<dyn Fn() -> usize + Send + Sync>,
    ) {
        self.state().probe = Some(Probe { rng, percent, known, images: Vec::new() });
    }

    /// Stops taking images, and returns them.
    pub(super) fn images(&self) -> Vec<Image> {
        self.state().probe.take().map(|probe| probe.images).unwrap_or_default()
    }

    /// The content that readers see.
    pub(super) fn bytes(&self) -> Vec<u8> {
        self.state().current.clone()
    }
}

impl State {
    /// Called before each operation: may take an image, or make the operation fail.
    fn before_call(&mut self, likelier_by: usize) -> Result<(), Error> {
        if let Some(mut probe) = self.probe.take() {
            if probe.rng.percent(probe.percent * likelier_by) {
                let known = (probe.known)();
                let bytes = self.after_power_loss(&mut probe.rng);
                probe.images.push(Image { known, bytes });
            }
            self.probe = Some(probe);
        }
        match &mut self.calls_left {
            None => Ok(()),
            Some(0) => Err(Error::from(ErrorKind::StorageFull)),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
        }
    }

    fn after_power_loss(&self, rng: &mut Rng) -> Vec<u8> {
        let often = rng.pick(&[4, 50, 96]);
        let survival = match rng.below(8) {
            0 => Survival::Nothing,
            1 => Survival::Everything,
            2 => Survival::Prefix(rng.below(self.pending.len() + 1)),
            3 | 4 => Survival::Writes(often),
            5 => Survival::Sectors(often),
            6 => Survival::FirstSector,
            _ => Survival::AllButFirstSector,
        };
        let mut image = self.durable.clone();
        let mut lengths = true;
        for (number, pending) in self.pending.iter().enumerate() {
            match pending {
                Pending::SetLen(len) => {
                    // Lengths are journaled: if one is lost, the later ones are lost too.
                    lengths &= match survival {
                        Survival::Nothing => false,
                        Survival::Prefix(cut) => number < cut,
                        Survival::Writes(often) | Survival::Sectors(often) => rng.percent(often),
                        _ => true,
                    };
                    if lengths {
                        image.resize(*len, 0);
                    }
                }
                Pending::Write { offset, data } => {
                    let whole = matches!(survival, Survival::Writes(often) if rng.percent(often));
                    for (start, sector) in sectors(*offset, data) {
                        let survives = match survival {
                            Survival::Nothing => false,
                            Survival::Everything => true,
                            Survival::Prefix(cut) if number == cut => rng.percent(50),
                            Survival::Prefix(cut) => number < cut,
                            Survival::Writes(_) => whole,
                            Survival::Sectors(often) => rng.percent(often),
                            Survival::FirstSector => start < SECTOR,
                            Survival::AllButFirstSector => start >= SECTOR,
                        };
                        // Writes after the end of the file are lost.
                        if survives && let Some(place) = image.get_mut(start..start + sector.len())
                        {
                            place.copy_from_slice(sector);
                        }
                    }
                }
            }
        }
        image
    }
}

/// The parts of a write that reach the disk independently, with their offsets.
fn sectors(offset: usize, data: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    let mut rest = data;
    let mut start = offset;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let len = (SECTOR - start % SECTOR).min(rest.len());
        let (sector, behind) = rest.split_at(len);
        let at = start;
        (rest, start) = (behind, start + len);
        Some((at, sector))
    })
}

fn size(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap()
}

impl std::fmt::Debug for Disk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Disk")
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> Result<u64, Error> {
        Ok(self.state().current.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), Error> {
        let state = self.state();
        let from = size(offset);
        let bytes = state.current.get(from..from + out.len());
        out.copy_from_slice(bytes.ok_or(Error::from(ErrorKind::UnexpectedEof))?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> Result<(), Error> {
        let mut state = self.state();
        state.before_call(1)?;
        state.current.resize(size(len), 0);
        state.pending.push(Pending::SetLen(size(len)));
        Ok(())
    }

    fn sync_data(&self) -> Result<(), Error> {
        let mut state = self.state();
        // This is the most dangerous moment.
        state.before_call(5)?;
        if state.lies {
            return Ok(());
        }
        let State { durable, pending, .. } = &mut *state;
        for pending in pending.drain(..) {
            match pending {
                Pending::SetLen(len) => durable.resize(len, 0),
                Pending::Write { offset, data } => {
                    durable[offset..offset + data.len()].copy_from_slice(&data);
                }
            }
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), Error> {
        let mut state = self.state();
        state.before_call(1)?;
        let offset = size(offset);
        let place = state.current.get_mut(offset..offset + data.len());
        place.ok_or(Error::from(ErrorKind::UnexpectedEof))?.copy_from_slice(data);
        state.pending.push(Pending::Write { offset, data: data.to_vec() });
        Ok(())
    }
}

#[test]
fn a_sync_makes_durable_what_was_written_and_nothing_else_does() {
    let disk = Disk::new(Vec::new());
    disk.set_len(2_048).unwrap();
    disk.sync_data().unwrap();
    disk.write(100, &[1; 1_000]).unwrap();
    let mut rng = Rng(1);
    let mut images: Vec<_> = (0..1_000).map(|_| disk.after_power_loss(&mut rng)).collect();
    images.sort();
    images.dedup();
    // Three sectors are written, and any subset of them may survive.
    assert_eq!(images.len(), 8);
    disk.sync_data().unwrap();
    let bytes = disk.bytes();
    for _ in 0..100 {
        assert_eq!(disk.after_power_loss(&mut rng), bytes);
    }
}
