//! Token shards: a directory of files of 16-bit token ids with a manifest, read piece by piece in a shuffled order.

use std::fs::File;
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::files::{make_directory, read_json, write_json};
use crate::tokenizer::{END, open as open_tokenizer};

const MANIFEST: &str = "manifest.json";
/// Documents that are encoded together, on all threads.
const DOCUMENTS: usize = 256;
/// Characters after which a document is cut for encoding, at the end of a paragraph, so that threads have equal work.
const PIECE: usize = 1 << 16;

/// What a directory of shards holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Tokens of the vocabulary.
    pub vocab_size: usize,
    /// Id of the token that separates documents.
    pub end: u32,
    /// SHA-256 of the tokenizer's file, which lies beside the shards as `tokenizer.json`.
    pub tokenizer_sha256: String,
    /// Bytes of the texts, without separators.
    pub bytes: u64,
    /// The files, in order.
    pub shards: Vec<Shard>,
}

/// A file of token ids, 16 bits each, little-endian.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shard {
    /// Its name in the directory.
    pub file: String,
    /// Tokens in it.
    pub tokens: u64,
    /// Its SHA-256.
    pub sha256: String,
}

impl Manifest {
    /// Tokens of all shards.
    pub fn tokens(&self) -> u64 {
        self.shards.iter().map(|shard| shard.tokens).sum()
    }
}

/// Encodes texts into shards of at most `shard_tokens` tokens in directory `to`. Documents are separated by
/// `<|endoftext|>` in a text, and begin with that token in a shard. `progress(done, total)` is told bytes.
///
/// # Errors
/// [`Error::Io`] for files, [`Error::Argument`] if the vocabulary has more than 65536 tokens.
pub fn encode(
    texts: &[PathBuf],
    tokenizer_file: &Path,
    to: &Path,
    shard_tokens: u64,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Manifest> {
    let (tokenizer, end) = open_tokenizer(tokenizer_file)?;
    let vocab_size = tokenizer.get_vocab_size(true);
    if vocab_size > 1 << 16 {
        return Err(Error::Argument(format!("a vocabulary of {vocab_size} tokens, expected at most 65536")));
    }
    make_directory(to)?;
    let tokenizer_bytes = std::fs::read(tokenizer_file).map_err(Error::io(tokenizer_file))?;
    crate::files::write_whole(&to.join("tokenizer.json"), |file| file.write_all(&tokenizer_bytes))?;
    let mut writer = ShardWriter { directory: to, limit: shard_tokens.max(1), open: None, shards: Vec::new() };
    let (mut bytes, mut done) = (0, 0);
    let sizes = texts.iter().map(|path| Ok(std::fs::metadata(path).map_err(Error::io(path))?.len()));
    let total = sizes.sum::<Result<u64>>()?;
    for path in texts {
        let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
        let mut pieces = Vec::new();
        for document in text.split(END).filter(|document| !document.is_empty()) {
            bytes += document.len() as u64;
            pieces.extend(cut(document).into_iter().enumerate().map(|(n, piece)| (n == 0, piece)));
        }
        for pieces in pieces.chunks(DOCUMENTS) {
            let texts = pieces.iter().map(|(_, piece)| *piece).collect::<Vec<_>>();
            let encoded = tokenizer.encode_batch_fast(texts, false);
            let encoded = encoded.map_err(|e| Error::malformed(path, e.to_string()))?;
            for ((first, piece), encoding) in pieces.iter().zip(encoded) {
                if *first {
                    writer.write(&[end])?;
                }
                writer.write(encoding.get_ids())?;
                done += piece.len() as u64;
            }
            progress(done.min(total), total);
        }
    }
    let shards = writer.finish()?;
    let tokenizer_sha256 = hex(&Sha256::digest(&tokenizer_bytes));
    let manifest = Manifest { vocab_size, end, tokenizer_sha256, bytes, shards };
    write_json(&to.join(MANIFEST), &manifest)?;
    Ok(manifest)
}

/// Pieces of a document that have the tokens of the whole: each but the first begins with the last blank before a paragraph,
/// where the words that byte-level BPE works on end in any case.
fn cut(document: &str) -> Vec<&str> {
    let (mut pieces, mut rest) = (Vec::new(), document);
    while let Some(at) = paragraph(rest) {
        let (piece, after) = rest.split_at(at);
        pieces.push(piece);
        rest = after;
    }
    pieces.push(rest);
    pieces
}

/// Where the last blank before a paragraph lies, after [`PIECE`] bytes or more.
fn paragraph(text: &str) -> Option<usize> {
    let from = (PIECE..text.len()).find(|at| text.is_char_boundary(*at))?;
    let blanks = from + text[from..].find("\n\n")?;
    let word = blanks + text[blanks..].find(|c: char| !c.is_whitespace())?;
    text[..word].char_indices().next_back().map(|(at, _)| at)
}

struct ShardWriter<'a> {
    directory: &'a Path,
    limit: u64,
    open: Option<(BufWriter<File>, PathBuf, Sha256, u64)>,
    shards: Vec<Shard>,
}

impl ShardWriter<'_> {
    fn write(&mut self, ids: &[u32]) -> Result<()> {
        let mut ids = ids;
        while !ids.is_empty() {
            if self.open.is_none() {
                let path = self.directory.join(format!("{:05}.bin", self.shards.len()));
                let file = File::create(&path).map_err(Error::io(&path))?;
                self.open = Some((BufWriter::new(file), path, Sha256::new(), 0));
            }
            let Some((file, path, hash, tokens)) = &mut self.open else { continue };
            let (now, later) = ids.split_at(ids.len().min((self.limit - *tokens) as usize));
            let bytes: Vec<u8> = now.iter().flat_map(|id| (*id as u16).to_le_bytes()).collect();
            file.write_all(&bytes).map_err(Error::io(&*path))?;
            hash.update(&bytes);
            *tokens += now.len() as u64;
            ids = later;
            if *tokens == self.limit {
                self.close()?;
            }
        }
        Ok(())
    }

    fn close(&mut self) -> Result<()> {
        let Some((mut file, path, hash, tokens)) = self.open.take() else { return Ok(()) };
        file.flush().and_then(|()| file.get_ref().sync_all()).map_err(Error::io(&path))?;
        let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        self.shards.push(Shard { file, tokens, sha256: hex(&hash.finalize()) });
        Ok(())
    }

    fn finish(mut self) -> Result<Vec<Shard>> {
        self.close()?;
        Ok(self.shards)
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // A string takes whatever is written to it.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Shards that are open for reading. They are never in memory as a whole.
pub struct Tokens {
    directory: PathBuf,
    manifest: Manifest,
    files: Vec<Mutex<File>>,
}

impl Tokens {
    /// Opens a directory that [`encode`] wrote.
    ///
    /// # Errors
    /// [`Error::Malformed`] if a shard has not the length that the manifest tells.
    pub fn open(directory: &Path) -> Result<Self> {
        let manifest: Manifest = read_json(&directory.join(MANIFEST))?;
        let mut files = Vec::new();
        for shard in &manifest.shards {
            let path = directory.join(&shard.file);
            let file = File::open(&path).map_err(Error::io(&path))?;
            let found = file.metadata().map_err(Error::io(&path))?.len();
            if found != 2 * shard.tokens {
                return Err(Error::malformed(&path, format!("has {found} bytes, expected {}", 2 * shard.tokens)));
            }
            files.push(Mutex::new(file));
        }
        Ok(Tokens { directory: directory.to_owned(), manifest, files })
    }

    /// What the manifest says.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The tokenizer's file.
    pub fn tokenizer_file(&self) -> PathBuf {
        self.directory.join("tokenizer.json")
    }

    /// `count` token ids from token `from` on, over shards as if they were one; fewer at the end.
    ///
    /// # Errors
    /// [`Error::Io`], or [`Error::Malformed`] for an id that is not in the vocabulary.
    pub fn read(&self, from: u64, count: usize) -> Result<Vec<u32>> {
        let mut ids = Vec::new();
        let mut first = 0;
        for (shard, file) in self.manifest.shards.iter().zip(&self.files) {
            let at = from + ids.len() as u64;
            if ids.len() < count && at >= first && at < first + shard.tokens {
                let take = (count - ids.len()).min((first + shard.tokens - at) as usize);
                let mut bytes = vec![0; 2 * take];
                let path = self.directory.join(&shard.file);
                let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
                file.seek(SeekFrom::Start(2 * (at - first)))
                    .and_then(|_| file.read_exact(&mut bytes))
                    .map_err(Error::io(&path))?;
                ids.extend(bytes.as_chunks::<2>().0.iter().map(|b| u32::from(u16::from_le_bytes(*b))));
                if let Some(id) = ids.iter().find(|id| **id as usize >= self.manifest.vocab_size) {
                    let message = format!("has token {id}, expected ids below {}", self.manifest.vocab_size);
                    return Err(Error::malformed(path, message));
                }
            }
            first += shard.tokens;
        }
        Ok(ids)
    }
}

/// An order of windows of tokens: all of them once an epoch, shuffled by a seed, without a list of them.
#[derive(Debug, Clone, Copy)]
pub struct Order {
    tokens: u64,
    window: u64,
    seed: u64,
}

impl Order {
    /// Windows of `window` tokens and one more, which the last one predicts, among `tokens`.
    ///
    /// # Errors
    /// [`Error::Argument`] if there is not one.
    pub fn new(tokens: u64, window: usize, seed: u64) -> Result<Self> {
        let window = window as u64;
        // One window less, so that every epoch may begin anywhere within the first.
        if tokens < 2 * window + 1 {
            let message = format!("the data has {tokens} tokens, expected at least {} for a window", 2 * window + 1);
            return Err(Error::Argument(message));
        }
        Ok(Order { tokens, window, seed })
    }

    /// Windows of an epoch.
    pub fn windows(&self) -> u64 {
        (self.tokens - 1) / self.window - 1
    }

    /// The first token of the `n`-th window that is trained on, from 0.
    pub fn start(&self, n: u64) -> u64 {
        let (epoch, n) = (n / self.windows(), n % self.windows());
        let shift = mix(self.seed ^ mix(epoch)) % self.window;
        shift + self.window * self.permuted(n, mix(epoch ^ mix(self.seed)))
    }

    /// Where `n` goes in a permutation of the windows: a Feistel network over the next power of four, walked until it is
    /// among them (Black and Rogaway 2002, "Ciphers with Arbitrary Finite Domains").
    fn permuted(&self, n: u64, key: u64) -> u64 {
        let windows = self.windows();
        let half = (64 - windows.leading_zeros()).div_ceil(2);
        let mask = (1 << half) - 1;
        let mut n = n;
        loop {
            let (mut left, mut right) = (n >> half, n & mask);
            for round in 0..4 {
                (left, right) = (right, left ^ (mix(right ^ mix(key ^ round)) & mask));
            }
            n = left << half | right;
            if n < windows {
                return n;
            }
        }
    }
}

/// A number that looks random: the finaliser of `SplitMix64`.
fn mix(n: u64) -> u64 {
    let mut n = n.wrapping_add(0x9e37_79b9_7f4a_7c15);
    n = (n ^ n >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    n = (n ^ n >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ n >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_has_each_window_once_and_differs_from_the_next() {
        for tokens in [21, 64, 1000, 12_345] {
            let order = Order::new(tokens, 10, 3).unwrap();
            let windows = order.windows();
            let epoch = |n: u64| (0..windows).map(|i| order.start(n * windows + i)).collect::<Vec<_>>();
            for n in 0..3 {
                let mut starts = epoch(n);
                assert!(starts.iter().all(|start| start + 10 < tokens));
                starts.sort_unstable();
                assert!(starts.windows(2).all(|pair| pair[1] - pair[0] == 10), "{starts:?}");
            }
            assert_ne!(epoch(0), epoch(1));
        }
        assert!(Order::new(20, 10, 3).is_err());
    }

    #[test]
    fn long_documents_are_cut_before_paragraphs_and_lose_nothing() {
        let document = "A paragraph.\n\n".repeat(20_000) + "The end\n\n\n";
        let pieces = cut(&document);
        assert!(pieces.len() > 3);
        assert!(pieces[1..].iter().all(|piece| piece.starts_with("\nA") || piece.starts_with("\nThe")));
        assert_eq!(pieces.concat(), document);
        assert_eq!(cut(&"x".repeat(1 << 18)).len(), 1);
        assert_eq!(cut(&"\n".repeat(1 << 18)).len(), 1);
    }
}
