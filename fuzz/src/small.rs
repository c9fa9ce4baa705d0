//! Checkpoints of a few kilobytes, by number: what targets begin with, and what the seeds are made of.

use std::sync::LazyLock;

use serde_json::{Map, Value, json};
use trion_engine::{FloatFormat, Model, PackOptions, Packing, quantize};

use crate::directory::Directory;

/// Numbers that are the same everywhere.
pub struct Random(u64);

impl Random {
    /// A stream of numbers.
    pub fn new(seed: u64) -> Self {
        Random(seed)
    }

    /// The next 32 bits.
    pub fn bits(&mut self) -> u32 {
        // The generator and constants of Knuth's MMIX.
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 32) as u32
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: usize) -> usize {
        self.bits() as usize % limit
    }

    /// A float from -1 to 1.
    pub fn float(&mut self) -> f32 {
        (self.bits() >> 8) as f32 / 8_388_608.0 - 1.0
    }

    /// A byte of four trits, as two-bit codes from 0 to 2.
    fn trits(&mut self) -> u8 {
        (0..4).fold(0, |byte, _| byte << 2 | self.below(3) as u8)
    }
}

/// What a small checkpoint of Hugging Face's form holds in its projections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Packed trits, outputs multiplied by the scale, with sub-norms: Microsoft's `BitNet`.
    Multiplied,
    /// Packed trits, outputs divided by the scale, and a norm in each projection.
    Divided,
    /// Float masters.
    Masters,
    /// Floats, and a head of its own.
    Floats,
    /// Trits with a scale for each 64 columns, saved as floats: Ternary-Bonsai.
    Groups,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 5] = [Kind::Multiplied, Kind::Divided, Kind::Masters, Kind::Floats, Kind::Groups];
}

/// The files of a small checkpoint.
pub struct Checkpoint {
    /// `config.json`.
    pub config: Value,
    /// `model.safetensors`.
    pub tensors: Vec<u8>,
}

/// A safetensors file, tensor by tensor.
#[derive(Default)]
struct Tensors {
    header: Map<String, Value>,
    data: Vec<u8>,
}

impl Tensors {
    fn add(&mut self, name: &str, dtype: &str, shape: &[usize], bytes: &[u8]) {
        let from = self.data.len();
        self.data.extend(bytes);
        let entry = json!({ "dtype": dtype, "shape": shape, "data_offsets": [from, self.data.len()] });
        self.header.insert(name.to_owned(), entry);
    }

    /// Floats in bfloat16, which is the upper half of a single.
    fn floats(&mut self, name: &str, shape: &[usize], mut next: impl FnMut() -> f32) {
        let count = shape.iter().product();
        let bytes: Vec<u8> = (0..count).flat_map(|_| ((next().to_bits() >> 16) as u16).to_le_bytes()).collect();
        self.add(name, "BF16", shape, &bytes);
    }
}

/// A safetensors file of a header and data.
pub fn safetensors_file(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

/// The seven projections of a block with their sizes, in a model of these widths.
fn projections(
    hidden: usize,
    heads: usize,
    key_values: usize,
    intermediate: usize,
) -> [(&'static str, usize, usize); 7] {
    [
        ("self_attn.q_proj", heads, hidden),
        ("self_attn.k_proj", key_values, hidden),
        ("self_attn.v_proj", key_values, hidden),
        ("self_attn.o_proj", hidden, heads),
        ("mlp.gate_proj", intermediate, hidden),
        ("mlp.up_proj", intermediate, hidden),
        ("mlp.down_proj", hidden, intermediate),
    ]
}

impl Checkpoint {
    /// The checkpoint of this kind.
    pub fn new(kind: Kind) -> Self {
        let (hidden, head_dim, intermediate) = if kind == Kind::Groups { (64, 32, 64) } else { (8, 4, 12) };
        let (vocabulary, random) = (10, &mut Random::new(kind as u64));
        let mut tensors = Tensors::default();
        tensors.floats("model.embed_tokens.weight", &[vocabulary, hidden], || random.float());
        if kind == Kind::Floats {
            tensors.floats("lm_head.weight", &[vocabulary, hidden], || random.float());
        }
        let mut norms = vec![("input_layernorm", hidden), ("post_attention_layernorm", hidden)];
        match kind {
            Kind::Multiplied | Kind::Masters => {
                norms.extend([("self_attn.attn_sub_norm", hidden), ("mlp.ffn_sub_norm", intermediate)]);
            }
            Kind::Groups => norms.extend([("self_attn.q_norm", head_dim), ("self_attn.k_norm", head_dim)]),
            Kind::Divided | Kind::Floats => {}
        }
        for (name, length) in norms {
            tensors.floats(&format!("model.layers.0.{name}.weight"), &[length], || 1.0);
        }
        tensors.floats("model.norm.weight", &[hidden], || 1.0);
        for (name, rows, cols) in projections(hidden, hidden, head_dim, intermediate) {
            let name = format!("model.layers.0.{name}");
            let weight = format!("{name}.weight");
            match kind {
                Kind::Multiplied | Kind::Divided => {
                    let bytes: Vec<u8> = (0..rows / 4 * cols).map(|_| random.trits()).collect();
                    tensors.add(&weight, "U8", &[rows / 4, cols], &bytes);
                    tensors.floats(&format!("{name}.weight_scale"), &[1], || 0.5);
                    if kind == Kind::Divided {
                        tensors.floats(&format!("{name}.rms_norm.weight"), &[cols], || 1.0);
                    }
                }
                Kind::Masters | Kind::Floats => tensors.floats(&weight, &[rows, cols], || random.float()),
                Kind::Groups => {
                    let mut at = 0;
                    tensors.floats(&weight, &[rows, cols], || {
                        at += 1;
                        let scale = [0.25, 0.5][at / 64 % 2];
                        (random.below(3) as f32 - 1.0) * scale
                    });
                }
            }
        }
        let mut config = json!({
            "architectures": ["LlamaForCausalLM"], "vocab_size": vocabulary, "hidden_size": hidden,
            "intermediate_size": intermediate, "num_hidden_layers": 1, "num_attention_heads": 2,
            "num_key_value_heads": 1, "head_dim": head_dim, "max_position_embeddings": 16, "rms_norm_eps": 1e-5,
            "bos_token_id": 1, "eos_token_id": [2],
        });
        let (architecture, quantization) = match kind {
            Kind::Multiplied => ("BitNetForCausalLM", json!({ "linear_class": "autobitlinear" })),
            Kind::Divided => ("LlamaForCausalLM", json!({ "linear_class": "bitlinear", "use_rms_norm": true })),
            Kind::Masters => {
                ("BitNetForCausalLM", json!({ "linear_class": "autobitlinear", "quantization_mode": "online" }))
            }
            Kind::Floats => ("LlamaForCausalLM", Value::Null),
            Kind::Groups => ("Qwen3ForCausalLM", Value::Null),
        };
        config["architectures"] = json!([architecture]);
        if quantization.is_object() {
            config["quantization_config"] = quantization;
            config["quantization_config"]["quant_method"] = json!("bitnet");
        }
        Checkpoint { config, tensors: safetensors_file(&Value::Object(tensors.header).to_string(), &tensors.data) }
    }
}

/// A tokenizer of ten tokens, which covers little of what can be written.
pub fn tokenizer() -> Value {
    let added = |id: u32, content: &str| {
        json!({ "id": id, "content": content, "special": true, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false })
    };
    let words = r"\p{N}{1,3}| ?\p{L}+|\s+";
    json!({
        "added_tokens": [added(1, "<s>"), added(2, "</s>")],
        "normalizer": null,
        "pre_tokenizer": { "type": "Sequence", "pretokenizers": [
            { "type": "Split", "pattern": { "Regex": words }, "behavior": "Isolated", "invert": false },
            { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false },
        ] },
        "post_processor": { "type": "TemplateProcessing",
            "single": [{ "SpecialToken": { "id": "<s>", "type_id": 0 } }, { "Sequence": { "id": "A", "type_id": 0 } }],
            "pair": [{ "Sequence": { "id": "A", "type_id": 0 } }, { "Sequence": { "id": "B", "type_id": 1 } }],
            "special_tokens": { "<s>": { "id": "<s>", "ids": [1], "tokens": ["<s>"] } } },
        "decoder": { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true },
        "model": { "type": "BPE", "vocab": {
            "a": 0, "<s>": 1, "</s>": 2, "b": 3, "1": 4, "\u{120}": 5, "ab": 6, "\u{c3}": 7, "\u{120}a": 8, "{": 9 },
            "merges": ["a b", "\u{120} a"] },
    })
}

/// A chat template for two kinds of speakers.
pub const TEMPLATE: &str = "{% for m in messages %}{{ bos_token }}{{ m.role }}: {{ m['content'] | trim }}\n\
     {% endfor %}{% if add_generation_prompt %}assistant:{% endif %}";

/// Packed files: the first with a tokenizer and a chat template, then one of every kind of checkpoint, and some with other
/// packings and formats of the embedding.
pub static PACKED: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    let mut number = 0;
    let mut pack = |kind: Kind, embedding, packing| {
        let directory = Directory::new(&format!("packed-{number}"), &Checkpoint::new(kind));
        if number == 0 {
            directory.write("tokenizer.json", tokenizer().to_string().as_bytes());
            directory.write("chat_template.jinja", TEMPLATE.as_bytes());
        }
        number += 1;
        let file = directory.path().join("packed.safetensors");
        quantize(directory.path(), &file, &PackOptions { embedding, packing }, &mut |_, _| {}).expect("a packed file");
        std::fs::read(file).expect("a packed file")
    };
    let mut files = vec![pack(Kind::Multiplied, FloatFormat::Keep, Packing::Twos)];
    files.extend(Kind::ALL.iter().map(|kind| pack(*kind, FloatFormat::Keep, Packing::Twos)));
    for (embedding, packing) in
        [(FloatFormat::F16, Packing::Fives), (FloatFormat::Int8, Packing::Twos), (FloatFormat::Int6, Packing::Fives)]
    {
        files.push(pack(Kind::Multiplied, embedding, packing));
    }
    files
});

/// The small model that targets use which are about something else.
pub static MODEL: LazyLock<Model> = LazyLock::new(|| Model::from_bytes(&PACKED[0]).expect("a small model"));

/// Numbers of GGUF's types of tensors and of metadata.
const F32: u32 = 0;
const I2_S: u32 = 36;
const Q2_0: u32 = 42;

/// A GGUF file, piece by piece.
#[derive(Default)]
struct Gguf {
    keys: u64,
    metadata: Vec<u8>,
    tensors: u64,
    infos: Vec<u8>,
    data: Vec<u8>,
}

impl Gguf {
    fn text(bytes: &mut Vec<u8>, text: &str) {
        bytes.extend((text.len() as u64).to_le_bytes());
        bytes.extend(text.as_bytes());
    }

    fn key(&mut self, key: &str, kind: u32, value: &[u8]) {
        self.keys += 1;
        Gguf::text(&mut self.metadata, key);
        self.metadata.extend(kind.to_le_bytes());
        self.metadata.extend(value);
    }

    fn list(&mut self, key: &str, kind: u32, values: &[Vec<u8>]) {
        let head = [&kind.to_le_bytes()[..], &(values.len() as u64).to_le_bytes()].concat();
        self.key(key, 9, &[&head[..], &values.concat()].concat());
    }

    fn tensor(&mut self, name: &str, shape: &[usize], kind: u32, bytes: &[u8]) {
        self.tensors += 1;
        Gguf::text(&mut self.infos, name);
        self.infos.extend((shape.len() as u32).to_le_bytes());
        shape.iter().rev().for_each(|size| self.infos.extend((*size as u64).to_le_bytes()));
        self.infos.extend(kind.to_le_bytes());
        self.data.resize(self.data.len().next_multiple_of(32), 0);
        self.infos.extend((self.data.len() as u64).to_le_bytes());
        self.data.extend(bytes);
    }

    fn file(self) -> Vec<u8> {
        let counts = [self.tensors.to_le_bytes(), self.keys.to_le_bytes()].concat();
        let mut file = [b"GGUF\x03\0\0\0", &counts[..], &self.metadata, &self.infos].concat();
        file.resize(file.len().next_multiple_of(32), 0);
        file.extend(self.data);
        file
    }
}

/// Matrices of a GGUF file that is checked in as a seed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GgufKind {
    /// Floats of the architecture llama.
    Floats,
    /// `I2_S` of bitnet-b1.58.
    I2S,
    /// `Q2_0` of qwen3.
    Q2,
}

/// A small GGUF file, with a vocabulary.
pub fn gguf(kind: GgufKind) -> Vec<u8> {
    let (architecture, width) = match kind {
        GgufKind::Floats => ("llama", 8),
        GgufKind::I2S => ("bitnet-b1.58", 128),
        GgufKind::Q2 => ("qwen3", 64),
    };
    let (vocabulary, head_dim, random) = (10, width / 2, &mut Random::new(kind as u64));
    let mut gguf = Gguf::default();
    let mut text = Vec::new();
    Gguf::text(&mut text, architecture);
    gguf.key("general.architecture", 8, &text);
    for (name, value) in [
        ("embedding_length", width),
        ("attention.head_count", 2),
        ("attention.head_count_kv", 1),
        ("feed_forward_length", width),
        ("block_count", 1),
        ("context_length", 16),
    ] {
        gguf.key(&format!("{architecture}.{name}"), 4, &(value as u32).to_le_bytes());
    }
    gguf.key(&format!("{architecture}.rope.freq_base"), 6, &10_000_f32.to_le_bytes());
    let texts = |texts: &[&str]| -> Vec<Vec<u8>> {
        let bytes = |text: &&str| {
            let mut bytes = Vec::new();
            Gguf::text(&mut bytes, text);
            bytes
        };
        texts.iter().map(bytes).collect()
    };
    let model = if kind == GgufKind::Floats { "llama" } else { "gpt2" };
    gguf.key("tokenizer.ggml.model", 8, &texts(&[model])[0]);
    let tokens = ["<unk>", "<s>", "</s>", "a", "b", "\u{2581}", "ab", "\u{2581}a", "\u{120}", "<0x0A>"];
    gguf.list("tokenizer.ggml.tokens", 8, &texts(&tokens));
    let scores: Vec<Vec<u8>> = (0..vocabulary).map(|id| (-(id as f32)).to_le_bytes().to_vec()).collect();
    gguf.list("tokenizer.ggml.scores", 6, &scores);
    let kinds: Vec<Vec<u8>> =
        [2_i32, 3, 3, 1, 1, 1, 1, 1, 1, 6].iter().map(|kind| kind.to_le_bytes().to_vec()).collect();
    gguf.list("tokenizer.ggml.token_type", 5, &kinds);
    gguf.list("tokenizer.ggml.merges", 8, &texts(&["a b"]));
    gguf.key("tokenizer.ggml.bos_token_id", 4, &1_u32.to_le_bytes());

    let mut floats = |count: usize| -> Vec<u8> { (0..count).flat_map(|_| random.float().to_le_bytes()).collect() };
    gguf.tensor("token_embd.weight", &[vocabulary, width], F32, &floats(vocabulary * width));
    gguf.tensor("output_norm.weight", &[width], F32, &floats(width));
    let mut norms = vec![("attn_norm", width), ("ffn_norm", width)];
    match kind {
        GgufKind::Floats => {}
        GgufKind::I2S => norms.extend([("attn_sub_norm", width), ("ffn_sub_norm", width)]),
        GgufKind::Q2 => norms.extend([("attn_q_norm", head_dim), ("attn_k_norm", head_dim)]),
    }
    for (name, length) in norms {
        gguf.tensor(&format!("blk.0.{name}.weight"), &[length], F32, &floats(length));
    }
    let names = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"];
    for (name, (_, rows, cols)) in names.iter().zip(projections(width, width, head_dim, width)) {
        let mut trits = |count: usize| -> Vec<u8> { (0..count / 4).map(|_| random.trits()).collect() };
        let (number, bytes) = match kind {
            GgufKind::Floats => (F32, (0..rows * cols).flat_map(|_| random.float().to_le_bytes()).collect()),
            GgufKind::I2S => (I2_S, [trits(rows * cols), 0.5_f32.to_le_bytes().to_vec()].concat()),
            GgufKind::Q2 => {
                // Each block of 64 with its scale: 1 and 0.5 in half precision.
                let block = |at: usize| [[0x3c00_u16, 0x3800][at % 2].to_le_bytes().to_vec(), trits(64)].concat();
                (Q2_0, (0..rows * cols / 64).flat_map(block).collect())
            }
        };
        gguf.tensor(&format!("blk.0.{name}.weight"), &[rows, cols], number, &bytes);
    }
    gguf.file()
}
