//! Copies of a session: into another buffer, and to bytes and back.

use super::forward::Cursor;
use super::{Logits, Session};
use crate::Error;
use crate::error::StateError;
use crate::kv_cache::CacheType;

/// The first bytes of a saved state; the last is the version of the format.
const MAGIC: [u8; 8] = *b"TRIONST\x01";
/// Magic, fingerprint, cache type, flags, tokens, positions in the cache, rows of logits.
const HEADER: usize = 8 + 8 + 4 + 4 + 8 + 8 + 8;

impl Session<'_, '_> {
    /// Takes over the tokens, the cache and the logits of `other`, from where the two go separate ways: a fork. The
    /// sessions may differ in context and batch size. A batch that is under way in `other` is begun again here. Of more
    /// rows of logits than this session has room for none is kept, as in [`Session::load`].
    ///
    /// # Errors
    /// [`Error::State`] for another model or cache type, [`Error::ContextOverflow`] if the tokens do not fit; the session
    /// is unchanged.
    pub fn fork_from(&mut self, other: &Session<'_, '_>) -> Result<(), Error> {
        if other.model.fingerprint() != self.model.fingerprint() {
            return Err(Error::State { reason: StateError::OtherModel });
        }
        if other.options.cache != self.options.cache {
            return Err(Error::State { reason: StateError::CacheType });
        }
        if other.counts.len > self.options.context {
            return Err(Error::ContextOverflow { found: other.counts.len, limit: self.options.context });
        }
        self.memory.tokens[..other.counts.len].copy_from_slice(other.tokens());
        for plane in 0..other.memory.cache.planes() {
            let from = other.memory.cache.plane(plane, other.counts.done);
            self.memory.cache.plane_mut(plane, other.counts.done).copy_from_slice(from);
        }
        let logits = other.logits().unwrap_or(&[]);
        self.adopt(other.counts.len, other.counts.done, other.counts.logits_rows, logits.iter().copied());
        Ok(())
    }

    /// Bytes that [`Session::save`] writes now.
    pub fn saved_bytes(&self) -> usize {
        let cache: usize =
            (0..self.memory.cache.planes()).map(|i| self.memory.cache.plane(i, self.counts.done).len()).sum();
        HEADER + 4 * self.counts.len + cache + 4 * self.logits().map_or(0, <[f32]>::len)
    }

    /// Writes the tokens, the cache and the logits, little-endian, to be loaded by a session of the same model on any
    /// machine. A batch that is under way is begun again after loading.
    ///
    /// # Errors
    /// [`Error::BufferTooSmall`].
    pub fn save(&self, out: &mut [u8]) -> Result<usize, Error> {
        let expected = self.saved_bytes();
        let found = out.len();
        let out = out.get_mut(..expected).ok_or(Error::BufferTooSmall { found, expected })?;
        let mut out = Writer(out);
        out.bytes(&MAGIC);
        out.bytes(&self.model.fingerprint().to_le_bytes());
        out.bytes(&(self.options.cache.bytes() as u32).to_le_bytes());
        out.bytes(&0_u32.to_le_bytes());
        for count in [self.counts.len, self.counts.done, self.counts.logits_rows] {
            out.bytes(&(count as u64).to_le_bytes());
        }
        for token in self.tokens() {
            out.bytes(&token.to_le_bytes());
        }
        for plane in 0..self.memory.cache.planes() {
            let written = out.bytes(self.memory.cache.plane(plane, self.counts.done));
            swap_on_big_endian(written, self.options.cache);
        }
        for logit in self.logits().unwrap_or(&[]) {
            out.bytes(&logit.to_le_bytes());
        }
        Ok(expected)
    }

    /// Replaces everything by a saved state. Of more rows of logits than this session has room for none is kept: the last
    /// token is computed once more when its logits are wanted.
    ///
    /// # Errors
    /// [`Error::State`] if the bytes are not a state of this model that fits here, [`Error::TokenOutOfRange`] if they
    /// hold such a token; the session is unchanged.
    pub fn load(&mut self, saved: &[u8]) -> Result<(), Error> {
        let refuse = |reason| Error::State { reason };
        let mut rest = Reader(saved);
        let magic = rest.take(8).ok_or(refuse(StateError::Length))?;
        if magic[..7] != MAGIC[..7] {
            return Err(refuse(StateError::NotAState));
        }
        if magic != MAGIC {
            return Err(refuse(StateError::Version));
        }
        let mut number = |bytes: usize| {
            let mut le = [0; 8];
            le[..bytes].copy_from_slice(rest.take(bytes)?);
            Some(u64::from_le_bytes(le))
        };
        let header = [number(8), number(4), number(4), number(8), number(8), number(8)];
        let [Some(fingerprint), Some(cache_bytes), Some(flags), Some(len), Some(done), Some(rows)] = header else {
            return Err(refuse(StateError::Length));
        };
        if fingerprint != self.model.fingerprint() {
            return Err(refuse(StateError::OtherModel));
        }
        if cache_bytes != self.options.cache.bytes() as u64 {
            return Err(refuse(StateError::CacheType));
        }
        if len > self.options.context as u64 {
            return Err(refuse(StateError::Context));
        }
        if flags != 0 || done > len || rows > done {
            return Err(refuse(StateError::Corrupt));
        }
        let (len, done, rows) = (len as usize, done as usize, rows as usize);
        let tokens = rest.take(4 * len).ok_or(refuse(StateError::Length))?;
        let plane_bytes = self.memory.cache.plane(0, done).len();
        let planes = rest.take(plane_bytes * self.memory.cache.planes()).ok_or(refuse(StateError::Length))?;
        let logits = rest.0;
        let vocab_size = self.model.config().vocab_size;
        if logits.len() as u64 != 4 * (rows as u64).saturating_mul(vocab_size as u64) {
            return Err(refuse(StateError::Length));
        }
        let tokens = tokens.as_chunks::<4>().0.iter().map(|le| u32::from_le_bytes(*le));
        if let Some(token) = tokens.clone().find(|token| *token as usize >= vocab_size) {
            return Err(Error::TokenOutOfRange { token, vocab_size });
        }

        self.memory.tokens.iter_mut().zip(tokens).for_each(|(to, token)| *to = token);
        for (plane, from) in planes.chunks_exact(plane_bytes.max(1)).enumerate() {
            let to = self.memory.cache.plane_mut(plane, done);
            to.copy_from_slice(from);
            swap_on_big_endian(to, self.options.cache);
        }
        self.adopt(len, done, rows, logits.as_chunks::<4>().0.iter().map(|le| f32::from_le_bytes(*le)));
        Ok(())
    }

    /// Takes over the counts of another session, and of its `rows` rows of logits those that this one can hold.
    fn adopt(&mut self, len: usize, done: usize, rows: usize, logits: impl Iterator<Item = f32>) {
        let fits = match self.options.logits {
            Logits::Last => rows <= 1,
            Logits::All => rows <= self.options.max_batch,
        };
        self.counts.len = len;
        self.counts.cursor = Cursor::IDLE;
        if fits {
            self.memory.logits.iter_mut().zip(logits).for_each(|(to, logit)| *to = logit);
            (self.counts.done, self.counts.logits_rows) = (done, rows);
        } else {
            // The logits cannot be kept: where they are wanted next, let the last token be computed once more.
            (self.counts.done, self.counts.logits_rows) = (done - usize::from(done == len), 0);
        }
    }
}

/// Makes little-endian numbers of this machine's, and back.
fn swap_on_big_endian(numbers: &mut [u8], cache: CacheType) {
    if cfg!(target_endian = "big") {
        numbers.chunks_exact_mut(cache.bytes()).for_each(<[u8]>::reverse);
    }
}

struct Writer<'a>(&'a mut [u8]);

impl<'a> Writer<'a> {
    /// Writes bytes, and gives them where they were written.
    fn bytes(&mut self, bytes: &[u8]) -> &'a mut [u8] {
        let (to, rest) = core::mem::take(&mut self.0).split_at_mut(bytes.len());
        to.copy_from_slice(bytes);
        self.0 = rest;
        to
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }
}
