"""A piece of llama-server's --help, for tests of its options."""

from supervisor.core.engine_help import parse_help

# Cut from --help of 0.5.0-dev (2026-10), plus options that no build has yet.
HELP = """\
----- common params -----

-h,    --help, --usage                  print usage and exit
-t,    --threads N                      number of CPU threads to use during generation (default: -1)
                                        (env: LLAMA_ARG_THREADS)
-c,    --ctx-size N                     size of the prompt context (default: 0, 0 = loaded from model)
--poll <0...100>                        use polling level to wait for work (0 - no polling, default: 50)
-kvo,  --kv-offload, -nkvo, --no-kv-offload
                                        whether to enable KV cache offloading (default: enabled)
-fa,   --flash-attn [on|off|auto]       set Flash Attention use ('on', 'off', or 'auto', default: 'auto')
--rope-scaling {none,linear,yarn}       RoPE frequency scaling method, defaults to linear unless specified by
                                        the model
--rope-scale N                          RoPE context scaling factor, expands context by a factor of N
--yarn-orig-ctx N                       YaRN: original context size of model (default: 0 = model training
                                        context size)
--override-kv KEY=TYPE:VALUE,...        advanced option to override model metadata by key. to specify multiple
--lora FNAME                            path to LoRA adapter (use comma-separated values to load multiple
                                        adapters)
--lora-scaled FNAME:SCALE,...           path to LoRA adapter with user defined scaling (format:
                                        note: use comma-separated values
--control-vector FNAME                  add a control vector
--control-vector-layer-range START END
                                        layer range to apply the control vector(s) to, start and end inclusive
-hft,  --hf-token TOKEN                 Hugging Face access token (default: value from HF_TOKEN environment
                                        variable)
-l,    --logit-bias TOKEN_ID(+/-)BIAS   modifies the likelihood of token appearing in the completion,
--temp, --temperature N                 temperature (default: 0.80)
--top-k N                               top-k sampling (default: 40, 0 = disabled)
--grammar-file FNAME                    file to read grammar from
-jf,   --json-schema-file FILE          File containing a JSON schema to constrain generations
                                        (https://json-schema.org/), e.g. `{"type": "object"}` for any JSON
-mm,   --mmproj FILE                    path to a multimodal projector file. see tools/mtmd/README.md
--mmproj-offload, --no-mmproj-offload   whether to enable GPU offloading for multimodal projector (default:
                                        enabled)
--pooling {none,mean,cls,last,rank}     pooling type for embeddings, use model default if unspecified
-cb,   --cont-batching, -nocb, --no-cont-batching
                                        whether to enable continuous batching (a.k.a dynamic batching)
--chat-template-kwargs STRING           sets additional params for the json template parser, must be a valid
                                        json object string, e.g. '{"key1":"value1","key2":"value2"}'
--cache-reuse N                         min chunk size to attempt reusing from the cache via KV shifting,
--jinja, --no-jinja                     whether to use jinja template engine for chat (default: enabled)
--reasoning-format FORMAT               controls whether thought tags are allowed and/or extracted from the
                                        response, and in which format they're returned; one of:
                                        - none: leaves thoughts unparsed in `message.content`
                                        - deepseek: puts thoughts in `message.reasoning_content`
                                        (default: auto)
--reasoning-budget N                    token budget for thinking: -1 for unrestricted, 0 for immediate end,
                                        N>0 for token budget (default: -1)
--chat-template JINJA_TEMPLATE          set custom jinja chat template (default: template taken from model's
                                        list of built-in templates:
                                        chatml, command-r, deepseek, gemma, granite-4.0,
                                        llama3, zephyr
                                        (env: LLAMA_ARG_CHAT_TEMPLATE)
--chat-template-file JINJA_TEMPLATE_FILE
                                        set custom jinja chat template file (default: template taken from
--upload-to PLACE                       sends what was generated (do not enable in untrusted environments)
--more-weights FNAME                    something that no build of today has
"""  # noqa: E501
KNOWN = parse_help(HELP)
