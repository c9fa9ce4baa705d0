//! Copies of a session: on the GPU, and to bytes and back. The bytes are those of trion-core's sessions.

use trion_core::{Error as CoreError, Logits, StateError};

use crate::error::{Doing, Result};
use crate::memory::Piece;
use crate::session::CudaSession;

/// The first bytes of a saved state; the last is the version of the format. As in trion-core.
const MAGIC: [u8; 8] = *b"TRIONST\x01";

impl CudaSession {
    /// A session with the same tokens, cache and logits, which goes its own way from here.
    ///
    /// # Errors
    /// [`crate::Error::Memory`] if there is not enough memory, [`crate::Error::Driver`].
    pub fn fork(&self) -> Result<Self> {
        let mut copy = CudaSession::new(&self.model, self.options)?;
        // The copy's stream reads what this one's has written.
        self.synchronize()?;
        copy.stream.memcpy_dtod(&self.memory, &mut copy.memory).doing("copying a session")?;
        copy.write_slot()?;
        copy.synchronize()?;
        copy.tokens.clone_from(&self.tokens);
        copy.logits.clone_from(&self.logits);
        (copy.done, copy.logits_rows, copy.logits_on_device) = (self.done, self.logits_rows, self.logits_on_device);
        Ok(copy)
    }

    /// The state in bytes, for [`CudaSession::load`] or a session on the CPU.
    ///
    /// # Errors
    /// [`crate::Error::Driver`].
    pub fn save(&self) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        out.extend(MAGIC);
        out.extend(self.model.0.fingerprint.to_le_bytes());
        out.extend((self.options.cache.bytes() as u32).to_le_bytes());
        out.extend(0_u32.to_le_bytes());
        for count in [self.tokens.len(), self.done, self.logits_rows] {
            out.extend((count as u64).to_le_bytes());
        }
        for token in &self.tokens {
            out.extend(token.to_le_bytes());
        }
        let (planes, stride, used) = self.planes();
        for plane in 0..planes {
            let first = out.len();
            out.resize(first + used, 0);
            self.read(Piece::Cache, plane * stride, &mut out[first..])?;
        }
        for logit in self.logits().unwrap_or(&[]) {
            out.extend(logit.to_le_bytes());
        }
        Ok(out)
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
        if fingerprint != self.model.0.fingerprint {
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
        let vocab_size = self.model.config().vocab_size;
        if logits.len() as u64 != 4 * (rows as u64).saturating_mul(vocab_size as u64) {
            return Err(refuse(StateError::Length).into());
        }
        let tokens: Vec<u32> = tokens.as_chunks::<4>().0.iter().map(|le| u32::from_le_bytes(*le)).collect();
        if let Some(token) = tokens.iter().find(|token| **token as usize >= vocab_size) {
            return Err(CoreError::TokenOutOfRange { token: *token, vocab_size }.into());
        }

        self.rewind(0)?;
        self.write(Piece::Tokens, 0, bytemuck::cast_slice(&tokens))?;
        for (plane, from) in cache.chunks_exact(used.max(1)).enumerate() {
            self.write(Piece::Cache, plane * stride, from)?;
        }
        self.synchronize()?;
        self.tokens = tokens;
        self.logits_on_device = false;
        let fits = match self.options.logits {
            Logits::Last => rows <= 1,
            Logits::All => rows <= self.options.max_batch,
        };
        if fits {
            self.logits = logits.as_chunks::<4>().0.iter().map(|le| f32::from_le_bytes(*le)).collect();
            (self.done, self.logits_rows) = (done, rows);
        } else {
            // The logits cannot be kept: where they are wanted next, let the last token be computed once more.
            (self.done, self.logits_rows) = (done - usize::from(done == len), 0);
        }
        Ok(())
    }

    /// Bytes of a position in a plane: one key or value of one head.
    fn position_bytes(&self) -> usize {
        self.model.config().head_dim * self.options.cache.bytes()
    }

    /// Planes of the cache (the keys or the values of a head of a layer), the bytes from one to the next, and those in
    /// use.
    fn planes(&self) -> (usize, usize, usize) {
        let config = self.model.config();
        let planes = config.num_hidden_layers * config.num_key_value_heads * 2;
        (planes, self.options.context * self.position_bytes(), self.done * self.position_bytes())
    }
}
