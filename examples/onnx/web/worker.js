// Loads the model and writes with it, in a thread of its own, so that the page can show each piece of text.

import {
    AutoModelForCausalLM, AutoTokenizer, TextStreamer, env,
} from 'https://cdn.jsdelivr.net/npm/@huggingface/transformers@4.3.1';

// Models are folders beside this file. They are not cached, since another export may take the place of one.
env.allowLocalModels = true;
env.allowRemoteModels = false;
env.localModelPath = './';
env.useBrowserCache = false;

// The smaller of the builds of ONNX Runtime. The other, which transformers.js would take, can also use WebGPU, but
// cannot convert from INT2.
const { versions, wasm } = env.backends.onnx;
const runtime = `https://cdn.jsdelivr.net/npm/onnxruntime-web@${versions.web}/dist/ort-wasm-simd-threaded`;
wasm.wasmPaths = { mjs: `${runtime}.mjs`, wasm: `${runtime}.wasm` };

async function load(name) {
    const tokenizer = await AutoTokenizer.from_pretrained(name);
    const model = await AutoModelForCausalLM.from_pretrained(name);
    return { tokenizer, model };
}

async function write({ tokenizer, model }, text, max_new_tokens) {
    const callback_function = (piece) => self.postMessage({ piece });
    const streamer = new TextStreamer(tokenizer, { skip_special_tokens: true, callback_function });
    await model.generate({ ...tokenizer(text), max_new_tokens, do_sample: false, streamer });
}

let loaded;
self.addEventListener('message', async ({ data }) => {
    try {
        if (data.model) {
            loaded = await load(data.model);
        } else {
            await write(loaded, data.text, data.count);
        }
        self.postMessage({ ready: true });
    } catch (error) {
        self.postMessage({ error: String(error) });
    }
});
