//! A model that owns its bytes.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use self_cell::self_cell;
use trion_core::{Config, Model as CoreModel};

use crate::device::Device;
use crate::error::{Error, Result};
use crate::gguf::GgufCheckpoint;
use crate::hf::HfCheckpoint;
use crate::map::{Mmap, MmapMut, map_file, zeros};
use crate::pack::{PackOptions, pack};
use crate::packed::{PackedConfig, PackedFile, Weights, swap_numbers};
use crate::source::Settings;

/// The first bytes of a GGUF file.
const GGUF_MAGIC: &[u8; 4] = b"GGUF";

/// The bytes of a packed file.
enum Storage {
    /// A mapped file, or a checkpoint that was packed in memory.
    Mapped(Mmap),
    /// Bytes of the program itself.
    Static(&'static [u8]),
    /// A file, and the same with numbers as this machine, which is big-endian, has them.
    Swapped { file: Box<Storage>, native: Mmap },
}

impl Storage {
    /// The file.
    fn bytes(&self) -> &[u8] {
        match self {
            Storage::Mapped(map) => map,
            Storage::Static(bytes) => bytes,
            Storage::Swapped { file, .. } => file.bytes(),
        }
    }

    /// The file with numbers in this machine's order of bytes.
    fn native(&self) -> &[u8] {
        match self {
            Storage::Swapped { native, .. } => native,
            storage => storage.bytes(),
        }
    }

    /// Adds what a big-endian machine needs, which others have in the file.
    fn into_native(self, path: &Path) -> Result<Self> {
        if cfg!(target_endian = "little") {
            return Ok(self);
        }
        let mut native = zeros(self.bytes().len())?;
        native[..self.bytes().len()].copy_from_slice(self.bytes());
        swap_numbers(path, &mut native)?;
        Ok(Storage::Swapped { native: read_only(native)?, file: Box::new(self) })
    }
}

/// Protects a block of memory from being written.
fn read_only(memory: MmapMut) -> Result<Mmap> {
    memory.make_read_only().map_err(|e| Error::Argument(format!("cannot protect memory: {e}")))
}

self_cell!(
    struct WeightsCell {
        owner: Storage,

        #[covariant]
        dependent: Weights,
    }
);

self_cell!(
    struct ModelCell {
        owner: WeightsCell,

        #[covariant]
        dependent: CoreModel,
    }
);

/// A model with its weights, tokenizer and chat template. Immutable; cloning shares it.
#[derive(Clone)]
pub struct Model {
    inner: Arc<Inner>,
    /// The weights on a GPU, if that is where it computes.
    #[cfg(feature = "cuda")]
    pub(crate) cuda: Option<Arc<crate::placed::Placed>>,
}

struct Inner {
    cell: ModelCell,
    settings: Settings,
    /// Where it was read from, which errors name.
    #[cfg(feature = "text")]
    path: PathBuf,
    #[cfg(feature = "text")]
    tokenizer: std::sync::OnceLock<crate::tokenizer::Tokenizer>,
    #[cfg(feature = "text")]
    chat_template: Option<crate::chat_template::ChatTemplate>,
    #[cfg(feature = "text")]
    constraint_vocabulary: std::sync::OnceLock<Arc<crate::constraint::Vocabulary>>,
}

impl Model {
    /// Opens a model: a file that Trion packed, which is mapped and used in place, a Hugging Face directory, or a GGUF
    /// file; the latter are packed in memory.
    ///
    /// # Errors
    /// When the file cannot be read, is not what it should be, or asks for what Trion does not do; the error names the
    /// file and the tensor.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::open_with_progress(path, &mut |_, _| {})
    }

    /// [`Model::open`], with `progress(done, total)` bytes while a checkpoint is packed.
    ///
    /// # Errors
    /// As [`Model::open`].
    pub fn open_with_progress(path: impl AsRef<Path>, progress: &mut dyn FnMut(u64, u64)) -> Result<Self> {
        let path = path.as_ref();
        if path.is_file()
            && !has_gguf_magic(path)?
            && let Some(model) = Self::if_packed(path, Storage::Mapped(map_file(path)?))?
        {
            return Ok(model);
        }
        let image = read_checkpoint(path, &PackOptions::default(), progress)?;
        Self::from_storage(path, Storage::Mapped(image))
    }

    /// A model in memory of its own, in packed form.
    pub(crate) fn from_image(image: Mmap) -> Result<Self> {
        Self::from_storage(Path::new("memory"), Storage::Mapped(image))
    }

    /// A model in the bytes of a packed file or of a GGUF file, which are copied.
    ///
    /// # Errors
    /// As [`Model::open`]; the error names the file `memory`.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        Self::read(&mut &*bytes, bytes.len())
    }

    /// A model in the `size` bytes of a packed file or of a GGUF file that `reader` gives: a file inside an archive,
    /// say.
    ///
    /// # Errors
    /// As [`Model::open`]; the error names the file `memory`. [`Error::Io`] if the reader fails or ends early.
    pub fn read(reader: &mut dyn Read, size: usize) -> Result<Self> {
        let memory = Path::new("memory");
        let mut bytes = zeros(size)?;
        reader.read_exact(&mut bytes[..size]).map_err(|e| Error::io(memory, e))?;
        if bytes.starts_with(GGUF_MAGIC) {
            let checkpoint = GgufCheckpoint::open(memory, &bytes[..size])?;
            return Self::from_image(pack(memory, &checkpoint, &PackOptions::default(), &mut |_, _| {})?);
        }
        Self::from_image(read_only(bytes)?)
    }

    /// A model in the bytes of a packed file that is part of the program. They must lie at a multiple of 64.
    ///
    /// # Errors
    /// As [`Model::open`]; the error names the file `memory`.
    pub fn from_static(bytes: &'static [u8]) -> Result<Self> {
        Self::from_storage(Path::new("memory"), Storage::Static(bytes))
    }

    fn from_storage(path: &Path, storage: Storage) -> Result<Self> {
        Self::if_packed(path, storage)?.ok_or_else(|| Error::malformed(path, "__metadata__.format", "is not \"trion\""))
    }

    /// The model in the bytes of a safetensors file; `None` if it is not one of Trion's.
    fn if_packed(path: &Path, storage: Storage) -> Result<Option<Self>> {
        let mut settings = None;
        let weights = WeightsCell::try_new(storage.into_native(path)?, |storage| {
            let packed = PackedFile::open(path, storage.native())?.ok_or(None)?;
            let weights = packed.weights(&settings.insert(packed.settings()?).config)?;
            Ok::<_, Option<Error>>(weights)
        });
        let (weights, settings) = match (weights, settings) {
            (Ok(weights), Some(settings)) => (weights, settings),
            (Err(Some(error)), _) => return Err(error),
            _ => return Ok(None),
        };
        let cell = ModelCell::try_new(weights, |weights| {
            let weights = weights.borrow_dependent();
            CoreModel::new(settings.config, weights.embedding, &weights.layers, weights.norm, weights.head)
                .map_err(|e| Error::malformed(path, "model", e.to_string()))
        })?;
        let inner = Inner {
            cell,
            #[cfg(feature = "text")]
            path: path.to_owned(),
            #[cfg(feature = "text")]
            tokenizer: std::sync::OnceLock::new(),
            #[cfg(feature = "text")]
            chat_template: settings
                .chat_template
                .as_ref()
                .map(|source| crate::chat_template::ChatTemplate::new(source))
                .transpose()
                .map_err(|e| Error::malformed(path, "chat_template", e.to_string()))?,
            #[cfg(feature = "text")]
            constraint_vocabulary: std::sync::OnceLock::new(),
            settings,
        };
        Ok(Some(Model {
            inner: Arc::new(inner),
            #[cfg(feature = "cuda")]
            cuda: None,
        }))
    }

    /// The same model on a device: its sessions compute there. Sessions of a model that is on no device compute on the
    /// CPU.
    ///
    /// # Errors
    /// [`Error::Cuda`] if the weights do not fit into the GPU's memory, or it fails.
    pub fn on(&self, device: &Device) -> Result<Self> {
        match device {
            Device::Cpu => Ok(Model {
                inner: Arc::clone(&self.inner),
                #[cfg(feature = "cuda")]
                cuda: None,
            }),
            #[cfg(feature = "cuda")]
            Device::Cuda(device) => {
                let placed = crate::placed::Placed::new(device, self.core())?;
                Ok(Model { inner: Arc::clone(&self.inner), cuda: Some(Arc::new(placed)) })
            }
        }
    }

    /// Where its sessions compute.
    pub fn device(&self) -> Device {
        #[cfg(feature = "cuda")]
        if let Some(placed) = &self.cuda {
            return Device::Cuda(placed.model().device().clone());
        }
        Device::Cpu
    }

    /// Whether two are clones of one model, on whichever device.
    pub fn is_same(&self, other: &Model) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }

    /// The core's view of it.
    pub fn core(&self) -> &CoreModel<'_> {
        self.inner.cell.borrow_dependent()
    }

    /// Shapes and constants.
    pub fn config(&self) -> &Config {
        self.core().config()
    }

    /// The configuration as a packed file states it.
    pub fn config_json(&self) -> serde_json::Value {
        let config = PackedConfig {
            config: *self.config(),
            bos_token_id: self.bos_token_id(),
            eos_token_id: self.eos_token_ids().to_vec(),
        };
        config.to_json()
    }

    /// A name for people.
    pub fn name(&self) -> &str {
        &self.inner.settings.name
    }

    /// The token that begins every text, if any.
    pub fn bos_token_id(&self) -> Option<u32> {
        self.inner.settings.bos_token_id
    }

    /// Tokens that end a text.
    pub fn eos_token_ids(&self) -> &[u32] {
        &self.inner.settings.eos_token_ids
    }

    /// Whether it has a tokenizer.
    pub fn has_tokenizer(&self) -> bool {
        self.inner.settings.tokenizer_json.is_some()
    }

    /// Whether it has a chat template.
    pub fn has_chat_template(&self) -> bool {
        self.inner.settings.chat_template.is_some()
    }

    /// The text of its `tokenizer.json`, if it has one.
    pub fn tokenizer_json(&self) -> Option<&str> {
        self.inner.settings.tokenizer_json.as_deref()
    }

    /// The text of its chat template, if it has one.
    pub fn chat_template_source(&self) -> Option<&str> {
        self.inner.settings.chat_template.as_deref()
    }

    /// The packed form: every byte of a file that Trion packs.
    pub fn packed(&self) -> &[u8] {
        self.inner.cell.borrow_owner().borrow_owner().bytes()
    }

    /// The tokenizer, which the first call builds: that takes a tenth of a second for a vocabulary of 128,000 tokens, and
    /// tens of megabytes, which a program that works with ids does without.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if the checkpoint has none, [`Error::Malformed`] if it is not what it should be.
    #[cfg(feature = "text")]
    pub fn tokenizer(&self) -> Result<&crate::tokenizer::Tokenizer> {
        let Inner { settings, tokenizer, path, .. } = &*self.inner;
        if let Some(tokenizer) = tokenizer.get() {
            return Ok(tokenizer);
        }
        let Some(json) = &settings.tokenizer_json else {
            return Err(Error::Tokenizer("the model comes without a tokenizer.json".to_owned()));
        };
        let built = crate::tokenizer::Tokenizer::from_json(json.as_bytes())
            .map_err(|e| Error::malformed(path, "tokenizer.json", e.to_string()))?;
        Ok(tokenizer.get_or_init(|| built))
    }

    /// The chat template, if the checkpoint has one.
    #[cfg(feature = "text")]
    pub fn chat_template(&self) -> Option<&crate::chat_template::ChatTemplate> {
        self.inner.chat_template.as_ref()
    }

    /// The tokens as constraints want them, built by the first call.
    #[cfg(feature = "text")]
    pub(crate) fn constraint_vocabulary(&self) -> Result<Arc<crate::constraint::Vocabulary>> {
        if let Some(vocabulary) = self.inner.constraint_vocabulary.get() {
            return Ok(vocabulary.clone());
        }
        let vocabulary = Arc::new(crate::constraint::Vocabulary::new(self)?);
        Ok(self.inner.constraint_vocabulary.get_or_init(|| vocabulary).clone())
    }
}

/// Packs whatever lies at `path`, in memory.
pub(crate) fn read_checkpoint(path: &Path, options: &PackOptions, progress: &mut dyn FnMut(u64, u64)) -> Result<Mmap> {
    if path.is_dir() {
        return pack(path, &HfCheckpoint::open(path)?, options, progress);
    }
    if has_gguf_magic(path)? {
        let map = map_file(path)?;
        return pack(path, &GgufCheckpoint::open(path, &map)?, options, progress);
    }
    // A safetensors file of a checkpoint: its configuration lies beside it.
    let directory = path.parent().map_or_else(PathBuf::new, Path::to_path_buf);
    if path.extension().is_some_and(|e| e == "safetensors") && directory.join("config.json").exists() {
        return pack(&directory, &HfCheckpoint::open(&directory)?, options, progress);
    }
    if path.is_file() && PackedFile::open(path, &map_file(path)?).is_ok_and(|packed| packed.is_some()) {
        return Err(Error::unsupported(path, "file", "is packed already; pack the checkpoint that it was made of"));
    }
    let message =
        "is none of a file packed by Trion, a GGUF file, and a directory with config.json and safetensors files";
    Err(Error::unsupported(path, "file", message))
}

fn has_gguf_magic(path: &Path) -> Result<bool> {
    let mut magic = [0; GGUF_MAGIC.len()];
    let mut file = fs::File::open(path).map_err(|e| Error::io(path, e))?;
    Ok(file.read_exact(&mut magic).is_ok() && magic == *GGUF_MAGIC)
}
