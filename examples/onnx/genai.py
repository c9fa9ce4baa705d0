"""Text from an exported model with onnxruntime-genai, the most likely token each time.

    pip install onnxruntime-genai
    python3 genai.py exported "Once upon a time" 64
"""

import sys

import onnxruntime_genai

directory, text, count = sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 64
model = onnxruntime_genai.Model(directory)
tokenizer = onnxruntime_genai.Tokenizer(model)
# The token with which texts begin, where the model has one.
tokenizer.update_options(add_special_tokens="true")
prompt = tokenizer.encode(text)

parameters = onnxruntime_genai.GeneratorParams(model)
parameters.set_search_options(do_sample=False, max_length=len(prompt) + count)
generator = onnxruntime_genai.Generator(model, parameters)
generator.append_tokens(prompt)
stream = tokenizer.create_stream()
print(text, end="", flush=True)
while not generator.is_done():
    generator.generate_next_token()
    print(stream.decode(generator.get_next_tokens()[0]), end="", flush=True)
print()
