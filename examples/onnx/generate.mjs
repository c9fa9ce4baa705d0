// Text from an exported model with transformers.js, the most likely token each time:
//
//   trion-onnx export models/tales-14m.safetensors -o exported
//   npm install
//   node generate.mjs exported "Once upon a time" 64
//   node generate.mjs exported --ids 0,47,1258 64
//
// The last form needs no tokenizer: it prints the tokens that follow as JSON.

import { resolve } from 'node:path';
import { AutoModelForCausalLM, AutoTokenizer, Tensor, TextStreamer, env } from '@huggingface/transformers';

const [directory, ...rest] = process.argv.slice(2);
const ids = rest[0] === '--ids' ? rest.splice(0, 2)[1].split(',').map(BigInt) : undefined;
const text = ids ? undefined : rest.shift();
const max_new_tokens = Number(rest[0] ?? 64);
if (!ids && text === undefined) {
    console.error('node generate.mjs DIR TEXT [COUNT]\nnode generate.mjs DIR --ids 1,2,3 [COUNT]');
    process.exit(2);
}

// An absolute path, since a relative one looks like the name of a model on Hugging Face.
const path = resolve(directory);
env.allowRemoteModels = false;
const model = await AutoModelForCausalLM.from_pretrained(path);
const options = { max_new_tokens, do_sample: false };

if (ids) {
    const input_ids = new Tensor('int64', BigInt64Array.from(ids), [1, ids.length]);
    const sequences = await model.generate({ input_ids, ...options });
    console.log(JSON.stringify(sequences.tolist()[0].slice(ids.length).map(Number)));
} else {
    const tokenizer = await AutoTokenizer.from_pretrained(path);
    const streamer = new TextStreamer(tokenizer, { skip_special_tokens: true });
    await model.generate({ ...tokenizer(text), ...options, streamer });
}
await model.dispose();
