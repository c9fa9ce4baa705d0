//! Copies of a session: on the GPU, and to bytes and back. The bytes are those of trion-core's sessions.

use std::borrow::Cow;

use trion_core::{Error as CoreError, Logits, StateError};

use crate::error::{Doing, Result};
use crate::memory::Piece;
use crate::session::CudaSession;

/// The first bytes of a saved state; the last is the version of the format. As in trion-core.
const MAGIC: [u8; 8] = *b"TRIONST\x01";

/// Magic, fingerprint, cache type, flags, tokens, positions in the cache, rows of logits.
const HEADER: usize = 8 + 8 + 4 + 4 + 8 + 8 + 8;

impl CudaSession {
    /// A session with the same tokens, cache and logits, which goes its own way from here.
    ///
    /// # Errors
    /// [`crate::Error::Memory`] if there is not enough memory, [`crate::Error::Driver`].
    pub fn fork(&self) -> Result<Self> {
        let mut copy = CudaSession::new(&self.work.model, self.options)?;
        copy.fork_from(self)?;
        Ok(copy)
    }

    /// Takes over the tokens, the cache and the logits of `other`, from where the two go separate ways. The sessions
    /// may differ in context and batch size.
    ///
    /// # Errors
    /// [`crate::Error::Core`] for another model or cache type, or if the tokens do not fit; the session is unchanged.
    /// [`crate::Error::Driver`] if the GPU fails; the session is empty then.
    pub fn fork_from(&mut self, other: &CudaSession) -> Result<()> {
        let refuse = |reason| CoreError::State { reason };
        if other.work.model.0.fingerprint != self.work.model.0.fingerprint {
            return Err(refuse(StateError::OtherModel).into());
        }
        if other.options.cache != self.options.cache {
            return Err(refuse(StateError::CacheType).into());
        }
        let (found, limit) = (other.tokens.len(), self.options.context);
        if found > limit {
            return Err(CoreError::ContextOverflow { found, limit }.into());
        }
        if other.work.memory.ordinal() != self.work.memory.ordinal() {
            // On another GPU: by way of the host.
            let mut saved = vec![0; other.saved_bytes()];
            other.save(&mut saved)?;
            return self.load(&saved);
        }
        // This session's stream reads what the other's has written.
        other.work.synchronize()?;
        self.rewind(0)?;
        self.work.write(Piece::Tokens, 0, bytemuck::cast_slice(&other.tokens))?;
        let (planes, from_stride, used) = other.planes();
        let (_, to_stride, _) = self.planes();
        let (from_first, to_first) = (other.work.sizes.offset(Piece::Cache), self.work.sizes.offset(Piece::Cache));
        for plane in if used > 0 { 0..planes } else { 0..0 } {
            let (from, to) = (from_first + plane * from_stride, to_first + plane * to_stride);
            let from = other.work.memory.slice(from..from + used);
            let mut to = self.work.memory.slice_mut(to..to + used);
            self.work.stream.memcpy_dtod(&from, &mut to).doing("copying a session")?;
        }
        // Before the other goes on.
        self.work.synchronize()?;
        let logits = other.all_logits()?.into_owned();
        self.tokens.clone_from(&other.tokens);
        self.adopt(other.done, other.logits_rows, logits);
        Ok(())
    }

    /// Takes over how far a session had come, whose tokens and cache are here.
    fn adopt(&mut self, done: usize, rows: usize, logits: Vec<f32>) {
        self.logits_on_device = false;
        let fits = match self.options.logits {
            Logits::Last => rows <= 1,
            Logits::All => rows <= self.options.max_batch,
        };
        if fits {
            self.logits = logits;
            self.logits_read = true;
            (self.done, self.logits_rows) = (done, rows);
        } else {
            // The logits cannot be kept: where they are wanted next, let the last token be computed once more.
            (self.done, self.logits_rows) = (done - usize::from(done == self.tokens.len()), 0);
        }
    }

    /// Bytes that [`CudaSession::save`] writes now.
    pub fn saved_bytes(&self) -> usize {
        let (planes, _, used) = self.planes();
        HEADER + 4 * self.tokens.len() + planes * used + 4 * self.logits_rows * self.work.model.config().vocab_size
    }

    /// The logits, also where the device alone has them.
    fn all_logits(&self) -> Result<Cow<'_, [f32]>> {
        if let Some(logits) = self.logits() {
            return Ok(Cow::Borrowed(logits));
        }
        let mut logits = vec![0.0; self.logits_rows * self.work.model.config().vocab_size];
        self.work.read(Piece::Logits, 0, bytemuck::cast_slice_mut(&mut logits))?;
        Ok(Cow::Owned(logits))
    }

    /// Writes the state, for [`CudaSession::load`] or a session on the CPU, and gives the number of bytes.
    ///
    /// # Errors
    /// [`crate::Error::Core`] if `out` is shorter than [`CudaSession::saved_bytes`], [`crate::Error::Driver`].
    pub fn save(&self, out: &mut [u8]) -> Result<usize> {
        let (found, expected) = (out.len(), self.saved_bytes());
        let mut rest = out.get_mut(..expected).ok_or(CoreError::BufferTooSmall { found, expected })?;
        // As many bytes as were counted.
        let mut next = |count: usize| {
            let (piece, behind) = std::mem::take(&mut rest).split_at_mut(count);
            rest = behind;
            piece
        };
        next(8).copy_from_slice(&MAGIC);
        next(8).copy_from_slice(&self.work.model.0.fingerprint.to_le_bytes());
        next(4).copy_from_slice(&(self.options.cache.bytes() as u32).to_le_bytes());
        next(4).copy_from_slice(&0_u32.to_le_bytes());
        for count in [self.tokens.len(), self.done, self.logits_rows] {
            next(8).copy_from_slice(&(count as u64).to_le_bytes());
        }
        for token in &self.tokens {
            next(4).copy_from_slice(&token.to_le_bytes());
        }
        let (planes, stride, used) = self.planes();
        for plane in 0..planes {
            self.work.read(Piece::Cache, plane * stride, next(used))?;
        }
        for logit in self.all_logits()?.iter() {
            next(4).copy_from_slice(&logit.to_le_bytes());
        }
        Ok(expected)
    }

    /// Replaces everything by a saved state, of a session on a GPU or a CPU.
    ///
    /// # Errors
    /// [`crate::Error::Core`] if the bytes are not a state of this model that fits here; the session is unchanged.
    /// [`crate::Error::Driver`] if the GPU fails; the session is empty then.
    pub fn load(&mut self, saved: &[u8]) -> Result<()> {
        let refuse = |reason| CoreError::State { reason };
        let mut rest = saved;
        let mut take = |count: usize| {
            let (taken, behind) = rest.split_at_checked(count)?;
            rest = behind;
            Some(taken)
        };
        let magic = take(8).ok_or(refuse(StateError::Length))?;
        if magic[..7] != MAGIC[..7] {
            return Err(refuse(StateError::NotAState).into());
        }
        if magic != MAGIC {
            return Err(refuse(StateError::Version).into());
        }
        let mut number = |bytes: usize| {
            let mut le = [0; 8];
            le[..bytes].copy_from_slice(take(bytes)?);
            Some(u64::from_le_bytes(le))
        };
        let header = [number(8), number(4), number(4), number(8), number(8), number(8)];
        let [Some(fingerprint), Some(cache_bytes), Some(flags), Some(len), Some(done), Some(rows)] = header else {
            return Err(refuse(StateError::Length).into());
        };
        if fingerprint != self.work.model.0.fingerprint {
            return Err(refuse(StateError::OtherModel).into());
        }
        if cache_bytes != self.options.cache.bytes() as u64 {
            return Err(refuse(StateError::CacheType).into());
        }
        if len > self.options.context as u64 {
            return Err(refuse(StateError::Context).into());
        }
        if flags != 0 || done > len || rows > done {
            return Err(refuse(StateError::Corrupt).into());
        }
        let (len, done, rows) = (len as usize, done as usize, rows as usize);
        let tokens = take(4 * len).ok_or(refuse(StateError::Length))?;
        let (planes, stride, _) = self.planes();
        let used = done * self.position_bytes();
        let cache = take(planes * used).ok_or(refuse(StateError::Length))?;
        let logits = rest;
        let vocab_size = self.work.model.config().vocab_size;
        if logits.len() as u64 != 4 * (rows as u64).saturating_mul(vocab_size as u64) {
            return Err(refuse(StateError::Length).into());
        }
        let tokens: Vec<u32> = tokens.as_chunks::<4>().0.iter().map(|le| u32::from_le_bytes(*le)).collect();
        if let Some(token) = tokens.iter().find(|token| **token as usize >= vocab_size) {
            return Err(CoreError::TokenOutOfRange { token: *token, vocab_size }.into());
        }

        self.rewind(0)?;
        self.work.write(Piece::Tokens, 0, bytemuck::cast_slice(&tokens))?;
        for (plane, from) in cache.chunks_exact(used.max(1)).enumerate() {
            self.work.write(Piece::Cache, plane * stride, from)?;
        }
        self.work.synchronize()?;
        self.tokens = tokens;
        let logits = logits.as_chunks::<4>().0.iter().map(|le| f32::from_le_bytes(*le)).collect();
        self.adopt(done, rows, logits);
        Ok(())
    }

    /// Bytes of a position in a plane: one key or value of one head.
    fn position_bytes(&self) -> usize {
        self.work.model.config().head_dim * self.options.cache.bytes()
    }

    /// Planes of the cache (the keys or the values of a head of a layer), the bytes from one to the next, and those in
    /// use.
    fn planes(&self) -> (usize, usize, usize) {
        let config = self.work.model.config();
        let planes = config.num_hidden_layers * config.num_key_value_heads * 2;
        (planes, self.options.context * self.position_bytes(), self.done * self.position_bytes())
    }
}
