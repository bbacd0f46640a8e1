//! Chance, from a seed.

/// SplitMix64: small, fast, and any seed is as good as another.
#[derive(Clone, Debug)]
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Rng {
        Rng(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A generator of its own, so that what one task draws does not depend on when the others run.
    pub(crate) fn fork(&mut self) -> Rng {
        Rng(self.next())
    }

    /// Less than `n`, which is not 0.
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    pub(crate) fn within(&mut self, from: u64, to: u64) -> u64 {
        from + self.below(to - from + 1)
    }

    pub(crate) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub(crate) fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }

    /// Mostly a few bytes, now and then many.
    pub(crate) fn size(&mut self) -> usize {
        let most = self.pick(&[1, 8, 8, 60, 60, 400, 400, 3_000, 9_000, 30_000]);
        self.within(1, most) as usize
    }

    /// A span of virtual time, in microseconds.
    pub(crate) fn span(&mut self) -> u64 {
        let most = self.pick(&[0, 900, 5_000, 60_000, 600_000, 6_000_000]);
        self.within(0, most)
    }
}

fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// The bytes of an endless stream: each is known from its offset, and no piece looks like its neighbour, so that a
/// byte that is lost, repeated or out of order shows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pattern(pub(crate) u64);

impl Pattern {
    pub(crate) fn fill(self, mut offset: u64, target: &mut [u8]) {
        let mut done = 0;
        while done < target.len() {
            let word = mix(self.0 ^ (offset >> 3)).to_le_bytes();
            let from = (offset & 7) as usize;
            let n = (8 - from).min(target.len() - done);
            target[done..done + n].copy_from_slice(&word[from..from + n]);
            done += n;
            offset += n as u64;
        }
    }

    pub(crate) fn bytes(self, offset: u64, n: usize) -> Vec<u8> {
        let mut bytes = vec![0; n];
        self.fill(offset, &mut bytes);
        bytes
    }

    pub(crate) fn check(self, mut offset: u64, mut bytes: &[u8], what: &str) {
        let start = offset;
        while !bytes.is_empty() {
            let word = mix(self.0 ^ (offset >> 3)).to_le_bytes();
            let from = (offset & 7) as usize;
            let n = (8 - from).min(bytes.len());
            assert!(
                bytes[..n] == word[from..from + n],
                "{what}: wrong bytes at {offset}, from {start} on"
            );
            bytes = &bytes[n..];
            offset += n as u64;
        }
    }
}
