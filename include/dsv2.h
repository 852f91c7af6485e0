/* libdsv2: run DeepSeek-V2 models (V2, V2-Lite, Coder-V2, V2.5) from inside a program.
 *
 * SPDX-License-Identifier: MIT
 *
 * Three objects:
 *   dsv2_context   threads, memory hooks, log callback.  Usually one per program.
 *   dsv2_model     immutable weights, tokenizer, chat template of one checkpoint folder; shared by any number of sessions.
 *   dsv2_session   one sequence of tokens: its KV cache, position, logits.
 *
 * The shortest program:
 *
 *     dsv2_context *ctx; dsv2_model *model; dsv2_session *s; dsv2_sample_params sp; int32_t ids[512]; size_t n;
 *     dsv2_context_create(NULL, &ctx);
 *     dsv2_model_load(ctx, "path/to/checkpoint", NULL, &model);
 *     dsv2_session_create(model, NULL, &s);
 *     dsv2_tokenize(model, "Story: One day", 14, DSV2_TOKENIZE_BOS, ids, 512, &n);
 *     dsv2_session_prefill(s, ids, n);
 *     dsv2_sample_params_init(&sp, sizeof sp, model);
 *     for (int32_t t; dsv2_sample(s, &sp, &t, NULL) == DSV2_OK && !dsv2_token_is_eos(model, t);) {
 *         use(t);
 *         if (dsv2_session_decode(s, t) != DSV2_OK)
 *             break;
 *     }
 *     dsv2_session_free(s); dsv2_model_free(model); dsv2_context_free(ctx);
 *
 * Rules that hold for every function:
 *   Errors.   A call that can fail returns a dsv2_status; 0 is success, every failure is negative, and dsv2_last_error() has
 *             its text for the calling thread.  A failed call changes nothing that its caller can see, unless it says so.
 *             The library never prints, exits, aborts, sets signal handlers or locale, or reads the environment.
 *   Lengths.  Text is UTF-8 given as pointer and byte count; it need not end in NUL and may contain NUL.
 *             A function that writes to a caller's array takes its capacity and always stores the full count in *n; when the
 *             capacity is smaller it returns DSV2_ERR_BUFFER and writes nothing (a NULL array with capacity 0 asks for the size).
 *   Structs.  A parameter struct begins with struct_size and is filled by its _init function, where it has one; else, and in structs
 *             that a call fills, set struct_size to its sizeof.  NULL for parameters means all defaults.
 *             Structs grow only at their end; programs built against an older header go on working (docs/abi.md).
 *   Threads.  Functions on a context or model may be called from any thread at any time.  A session is used by one thread at a
 *             time, with dsv2_session_cancel() as the only exception.
 *   Fork.     After fork() the child gets DSV2_ERR_FORKED from every call that would compute. */
#ifndef DSV2_H
#define DSV2_H

#include <stddef.h>
#include <stdint.h>

#define DSV2_VERSION_MAJOR 0
#define DSV2_VERSION_MINOR 1
#define DSV2_VERSION_PATCH 0

#if defined(__GNUC__) || defined(__clang__)
#define DSV2_API __attribute__((visibility("default")))
#else
#define DSV2_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ---- Version and status ---------------------------------------------------------------------------------------------- */

/* Version of the loaded library: major * 1000000 + minor * 1000 + patch. */
DSV2_API uint32_t dsv2_version(void);

typedef int32_t dsv2_status;
#define DSV2_OK 0
#define DSV2_ERR_INVALID (-10)      /* an argument: NULL, out of range, unknown flag or token id */
#define DSV2_ERR_BUFFER (-11)       /* the caller's array is too small; *n has the size needed */
#define DSV2_ERR_STATE (-12)        /* the call does not fit the object's state, e.g. logits before any token */
#define DSV2_ERR_NOMEM (-20)        /* memory could not be had */
#define DSV2_ERR_IO (-30)           /* a file could not be opened, read or written */
#define DSV2_ERR_FORMAT (-40)       /* a file is malformed or contradicts itself or another */
#define DSV2_ERR_UNSUPPORTED (-41)  /* well-formed, but outside of what this library runs */
#define DSV2_ERR_UTF8 (-42)         /* text is not valid UTF-8 */
#define DSV2_ERR_LIMIT (-43)        /* a matching or size limit was reached */
#define DSV2_ERR_CONTEXT_FULL (-50) /* the tokens do not fit the session's context; nothing was evaluated */
#define DSV2_ERR_NO_PAGES (-51)     /* the page pool has none left; nothing was evaluated */
#define DSV2_ERR_CANCELLED (-60)    /* a callback or dsv2_session_cancel() asked to stop */
#define DSV2_ERR_NUMERIC (-70)      /* NaN among the logits, or no token left to choose from */
#define DSV2_ERR_FORKED (-80)       /* the context belongs to another process */
#define DSV2_ERR_DEVICE (-81)       /* the GPU failed or was lost: its context's models are of no more use, the host's state is */
#define DSV2_ERR_INTERNAL (-90)     /* a bug in libdsv2; please report it */

/* Name of a status, e.g. "DSV2_ERR_IO".  Static storage; never NULL. */
DSV2_API const char *dsv2_status_name(dsv2_status status);

/* Text of the last failure on the calling thread, naming file, field and value where there is one; "" before any.
 * Valid until the next failure on this thread. */
DSV2_API const char *dsv2_last_error(void);

/* ---- Context --------------------------------------------------------------------------------------------------------- */

typedef struct dsv2_context dsv2_context;

/* Called for warnings and notes; text ends in NUL, without newline.  May be called from any thread that is inside the library. */
typedef void (*dsv2_log_fn)(void *user, int32_t level, const char *text);
#define DSV2_LOG_WARNING 1
#define DSV2_LOG_INFO 2

/* Memory hooks.  alloc returns NULL when there is none; alignment is a power of two.  free gets the size that alloc got. */
typedef void *(*dsv2_alloc_fn)(void *user, size_t size, size_t alignment);
typedef void (*dsv2_free_fn)(void *user, void *ptr, size_t size);

#define DSV2_BACKEND_CPU 0
#define DSV2_BACKEND_CUDA 1 /* an NVIDIA GPU of compute capability 8.0 or later */

#define DSV2_CPU_BEST (-1) /* the best instruction set that the machine has */
#define DSV2_CPU_REFERENCE 0 /* plain C */
#define DSV2_CPU_AVX2 1
#define DSV2_CPU_AVX512 2

typedef struct dsv2_context_params {
    size_t struct_size;
    int32_t n_threads;      /* worker threads, the calling one included; 0 (default) = one per core allowed to this process */
    int32_t cpu_level;      /* DSV2_CPU_*: highest instruction set used; default DSV2_CPU_BEST */
    uint64_t memory_bytes;  /* memory that default context lengths may count on; 0 (default) = 3/4 of the machine's or the device's */
    dsv2_log_fn log;        /* default NULL: silent */
    void *log_user;
    dsv2_alloc_fn alloc;    /* both or neither; default: the C library's heap.  The JSON parser (cJSON) uses malloc always. */
    dsv2_free_fn free;
    void *alloc_user;
    int32_t backend;        /* DSV2_BACKEND_*; default CPU */
    int32_t device;         /* CUDA: which, as CUDA counts; default 0.  No other device is touched */
    const char *cuda_module; /* CUDA: the file libdsv2-cuda.so; default NULL: the one beside this library.  It must be of the same build.
                             * Not used where the backend is linked in */
    void *cuda_stream;      /* CUDA: a cudaStream_t of the device for all steps, alive as long as the context; default NULL: its own.
                             * Best a non-blocking one: others cannot always be recorded, and then steps are launched one by one */
    int32_t invariant;      /* CUDA: 1: the bits of a session do not depend on what else is in a step, as on the CPU; default 0: faster */
    int32_t reserved;       /* 0 */
} dsv2_context_params;

/* Fill the first size bytes of *params with defaults; size is sizeof *params in the caller's header. */
DSV2_API void dsv2_context_params_init(dsv2_context_params *params, size_t size);

/* Create a context.  *out is set to NULL on failure.  Errors: INVALID, NOMEM, UNSUPPORTED (cpu_level above the machine's; no CUDA module,
 * one of another build, no such device). */
DSV2_API dsv2_status dsv2_context_create(const dsv2_context_params *params, dsv2_context **out);

/* Give up the caller's reference; NULL is allowed.  Models keep their context alive. */
DSV2_API void dsv2_context_free(dsv2_context *ctx);

/* A backend, and whether a context can have it here. */
typedef struct dsv2_backend_info {
    size_t struct_size;
    int32_t backend;        /* DSV2_BACKEND_* */
    int32_t available;      /* 0 or 1 */
    int32_t n_devices;
    int32_t reserved;
    char name[16];          /* "cpu", "cuda" */
    char reason[240];       /* why it is not available; else "" */
} dsv2_backend_info;

/* List the backends: entry i in infos + i * info_size bytes, at most capacity of them, struct_size filled in; *n is how many there are.
 * cuda_module as in dsv2_context_params.  Looks for the CUDA module, and loads it if it is there, which starts CUDA in this process: a child
 * that it forks afterwards has none.  Errors: INVALID. */
DSV2_API dsv2_status dsv2_backend_list(const char *cuda_module, dsv2_backend_info *infos, size_t info_size, size_t capacity, size_t *n);

/* ---- Model ----------------------------------------------------------------------------------------------------------- */

typedef struct dsv2_model dsv2_model;

/* Progress of long work: done of total (bytes while loading, tokens in dsv2_session_prefill).  Return nonzero to cancel. */
typedef int32_t (*dsv2_progress_fn)(void *user, uint64_t done, uint64_t total);

/* How a caller supplies a checkpoint's files itself.  name is a plain file name such as "config.json", never a path.
 * size: store the file's size; return DSV2_OK, or DSV2_ERR_IO when there is no such file.
 * read: fill buf with exactly n bytes from offset; DSV2_OK or any error, which ends the load.
 * Called only on the thread that is inside dsv2_model_load or dsv2_model_inspect. */
typedef struct dsv2_reader {
    size_t struct_size;
    dsv2_status (*size)(void *user, const char *name, uint64_t *bytes);
    dsv2_status (*read)(void *user, const char *name, uint64_t offset, void *buf, size_t n);
    void *user;
} dsv2_reader;

#define DSV2_LOAD_MMAP 0 /* map the weights: quick, shared between processes.  Truncating or changing a mapped file
                          * while the model lives is the caller's fault and may kill the process with SIGBUS. */
#define DSV2_LOAD_READ 1 /* read the weights into memory: slower, but the files may change afterwards */

typedef struct dsv2_model_params {
    size_t struct_size;
    int32_t load_mode;          /* DSV2_LOAD_*; default MMAP.  With a reader: always READ */
    int32_t reserved;           /* 0 */
    const dsv2_reader *reader;  /* default NULL: the folder given; otherwise the folder argument only names it in errors */
    dsv2_progress_fn progress;  /* default NULL */
    void *progress_user;
} dsv2_model_params;

DSV2_API void dsv2_model_params_init(dsv2_model_params *params, size_t size);

/* Load the checkpoint in folder: config.json and *.safetensors; if present tokenizer.json, tokenizer_config.json,
 * chat_template.jinja (it counts instead of chat_template in tokenizer_config.json) and generation_config.json.  No other file is
 * read and nothing in it is executed.
 * *out is set to NULL on failure.  Errors: IO, FORMAT, UNSUPPORTED, LIMIT, NOMEM, CANCELLED, INVALID. */
DSV2_API dsv2_status dsv2_model_load(dsv2_context *ctx, const char *folder, const dsv2_model_params *params,
                                     dsv2_model **out);

/* One more reference, and one less; free takes NULL.  The model goes when the last reference and the last session go. */
DSV2_API void dsv2_model_retain(dsv2_model *model);
DSV2_API void dsv2_model_free(dsv2_model *model);

/* Facts of a model.  Names are those of config.json.  Output struct: set struct_size, fields up to it are filled. */
typedef struct dsv2_model_info {
    size_t struct_size;
    int32_t vocab_size, hidden_size, num_hidden_layers, num_attention_heads;
    int32_t q_lora_rank;            /* 0: no query low-rank projection (null in config.json) */
    int32_t kv_lora_rank, qk_nope_head_dim, qk_rope_head_dim, v_head_dim;
    int32_t intermediate_size, moe_intermediate_size;
    int32_t n_routed_experts;       /* 0: every layer is dense */
    int32_t n_shared_experts, num_experts_per_tok, n_group, topk_group, first_k_dense_replace, moe_layer_freq;
    int32_t max_position_embeddings;
    int32_t bos_token_id, eos_token_id;     /* eos: the first one where there are several; -1: none */
    int32_t n_tokens;               /* ids that have a token; ids from here to vocab_size - 1 are padding rows.  0: no tokenizer */
    int32_t has_tokenizer, chat_template;   /* 0/1; DSV2_CHAT_* */
    double routed_scaling_factor, rope_theta, softmax_scale;
    uint64_t parameters;            /* total */
    uint64_t active_parameters;     /* used per token: without the unused routed experts and the input embedding */
    uint64_t weight_bytes;          /* as stored in the checkpoint */
    uint64_t kv_elements_per_token; /* (kv_lora_rank + qk_rope_head_dim) * num_hidden_layers */
    char weight_dtype[8];           /* of most weights: "BF16", "F16", "F32", "F8_E4M3" */
} dsv2_model_info;

DSV2_API dsv2_status dsv2_model_get_info(const dsv2_model *model, dsv2_model_info *info);

typedef struct dsv2_session_params dsv2_session_params;

/* Memory in bytes, for one model with one session of the given parameters.  Output struct: set struct_size. */
typedef struct dsv2_memory {
    size_t struct_size;
    uint64_t weights;           /* weights as the backend holds them (mapped or allocated) */
    uint64_t kv;                /* the session's cache when its context is full */
    uint64_t kv_per_token;
    uint64_t scratch;           /* activations and logits while computing */
    uint64_t other;             /* tokenizer and tables */
    uint64_t total;             /* sum of weights, kv, scratch, other */
    int32_t n_ctx;              /* the context length that this is for */
    int32_t reserved;
} dsv2_memory;

/* What loading folder would give and take, from the folder alone, without reading weights: the configuration is validated in
 * full, and the tensors' headers too where weight files are there (a folder with config.json only is enough otherwise).
 * info and memory may each be NULL.  Errors as dsv2_model_load. */
DSV2_API dsv2_status dsv2_model_inspect(dsv2_context *ctx, const char *folder, const dsv2_model_params *params,
                                        const dsv2_session_params *session, dsv2_model_info *info, dsv2_memory *memory);

/* ---- Tokens and text ------------------------------------------------------------------------------------------------- */

#define DSV2_TOKENIZE_BOS 1u        /* put bos_token_id in front, if the model's tokenizer_config says add_bos_token */
#define DSV2_TOKENIZE_NO_MARKERS 2u /* text such as "<｜end▁of▁sentence｜>" typed by a user stays text: no added token is recognised */
#define DSV2_TOKENIZE_REPLACE 4u    /* replace invalid UTF-8 by U+FFFD (one per maximal subpart) instead of failing */

/* Encode text as HF tokenizers does with the model's tokenizer.json.  Errors: UTF8 (names the byte offset), BUFFER, LIMIT,
 * STATE (the model has no tokenizer), NOMEM. */
DSV2_API dsv2_status dsv2_tokenize(const dsv2_model *model, const char *text, size_t n_text, uint32_t flags,
                                   int32_t *ids, size_t capacity, size_t *n);

#define DSV2_DETOKENIZE_SKIP_SPECIAL 1u /* leave out tokens flagged special */

/* Decode ids to UTF-8, invalid sequences replaced by U+FFFD.  No terminating NUL is written.  Padding ids decode to nothing.
 * Errors: INVALID (id outside 0..vocab_size-1), BUFFER, STATE. */
DSV2_API dsv2_status dsv2_detokenize(const dsv2_model *model, const int32_t *ids, size_t n_ids, uint32_t flags,
                                     char *text, size_t capacity, size_t *n);

/* Raw bytes of one token (may be a part of a UTF-8 sequence).  Owned by the model.  Errors: INVALID, STATE. */
DSV2_API dsv2_status dsv2_token_bytes(const dsv2_model *model, int32_t id, const char **bytes, size_t *n);

/* Id of the token whose text is exactly text, e.g. an added token.  Errors: INVALID (there is none), STATE. */
DSV2_API dsv2_status dsv2_token_find(const dsv2_model *model, const char *text, size_t n_text, int32_t *id);

/* 1 if id ends generation: any eos_token_id of generation_config.json or config.json. */
DSV2_API int32_t dsv2_token_is_eos(const dsv2_model *model, int32_t id);

/* Streaming text: collects generated tokens and hands out text that is final.  It holds back an incomplete UTF-8 sequence and
 * anything that may still become a stop string; at the end nothing is lost.  Belongs to one thread at a time. */
typedef struct dsv2_text dsv2_text;

typedef struct dsv2_text_params {
    size_t struct_size;
    const char *const *stop;    /* n_stop stop strings, NUL-terminated, none empty; copied */
    size_t n_stop;
    int32_t skip_special;       /* default 1 */
    int32_t include_stop;       /* default 0: text is cut before the stop string; 1: after it */
} dsv2_text_params;

DSV2_API void dsv2_text_params_init(dsv2_text_params *params, size_t size);
DSV2_API dsv2_status dsv2_text_create(dsv2_model *model, const dsv2_text_params *params, dsv2_text **out);

/* Add a token.  *piece (n bytes, may be empty) is text that can be shown now; owned by the object, valid until its next call.
 * *stopped becomes 1 when a stop string (the earliest in the text; among those that begin at one place, the first in the list) is complete;
 * later tokens are ignored then.  stopped may be NULL. */
DSV2_API dsv2_status dsv2_text_push(dsv2_text *text, int32_t token, const char **piece, size_t *n, int32_t *stopped);

/* The rest: everything held back, an incomplete sequence as U+FFFD.  The object can then be used for a new stream. */
DSV2_API dsv2_status dsv2_text_finish(dsv2_text *text, const char **piece, size_t *n);
DSV2_API void dsv2_text_free(dsv2_text *text);

/* ---- Chat ------------------------------------------------------------------------------------------------------------ */

#define DSV2_CHAT_NONE 0 /* the checkpoint has no chat template (a base model) */
#define DSV2_CHAT_V2 1   /* V2-Chat, V2-Lite-Chat, Coder-V2-Instruct: "User: ...\n\nAssistant:" */
#define DSV2_CHAT_V25 2  /* V2.5: <｜User｜>...<｜Assistant｜> */
#define DSV2_CHAT_UNKNOWN 3 /* there is one, but none that this library knows: render it yourself and tokenize the text */

/* A tool that the assistant called: an element of HF's "tool_calls".  NUL-terminated, UTF-8, none of them NULL. */
typedef struct dsv2_tool_call {
    const char *type;       /* "function" */
    const char *name;       /* function.name */
    const char *arguments;  /* function.arguments: the JSON as the assistant wrote it */
} dsv2_tool_call;

typedef struct dsv2_chat_message {
    const char *role;       /* "system", "user", "assistant", or another: see the template; NUL-terminated */
    const char *content;    /* NULL: empty, or in a message with tool calls HF's None */
    size_t n_content;
    const dsv2_tool_call *tool_calls;   /* n_tool_calls of them; NULL: none */
    size_t n_tool_calls;
    size_t tool_call_size;  /* sizeof(dsv2_tool_call) */
} dsv2_chat_message;

#define DSV2_CHAT_GENERATE 1u   /* end with the prompt for the assistant's turn (add_generation_prompt) */
/* Only for dsv2_chat_tokenize: added tokens are recognised in the template's own text, never in contents or tool calls. */
#define DSV2_CHAT_NO_MARKERS 2u

/* Render messages (n of them, each message_size = sizeof(dsv2_chat_message) bytes apart) byte for byte as the checkpoint's
 * chat_template does.  The text has the BOS marker in it: tokenize it without DSV2_TOKENIZE_BOS.  It begins with it, unless the
 * template is V2.5's with indentation, which puts eight blanks in front for each system message.
 * V2.5 renders the results of tools (role "tool") and an assistant's tool calls, these only where content is NULL, as its template does;
 * V2 has neither.
 * Errors: UNSUPPORTED (no template, an unknown one, V2 and an assistant's message of tool calls only), INVALID (V2.5 and an assistant's
 * message with neither content nor tool calls), UTF8, BUFFER. */
DSV2_API dsv2_status dsv2_chat_apply(const dsv2_model *model, const dsv2_chat_message *messages, size_t message_size,
                                     size_t n_messages, uint32_t flags, char *text, size_t capacity, size_t *n);

/* The same, straight to ids: exactly one BOS.  Without DSV2_CHAT_NO_MARKERS equal to tokenizing the rendered text. */
DSV2_API dsv2_status dsv2_chat_tokenize(const dsv2_model *model, const dsv2_chat_message *messages, size_t message_size,
                                        size_t n_messages, uint32_t flags, int32_t *ids, size_t capacity, size_t *n);

/* ---- Pages ----------------------------------------------------------------------------------------------------------- */

/* How the cache stores a token of a layer: its latent (kv_lora_rank) and its key (qk_rope_head_dim).  The types of 8 bits and less have
 * scales per token, so what is stored for a token depends on that token alone.  Bytes are those of 512 + 64, scales included. */
#define DSV2_KV_BF16 0    /* 1152 */
#define DSV2_KV_F32 1     /* 2304 */
#define DSV2_KV_F8_E4M3 2 /* 592 */
#define DSV2_KV_F8_E5M2 3 /* 592 */
#define DSV2_KV_INT8 4    /* 592 */
#define DSV2_KV_6BIT 5    /* 400: 5 bits for the rotated latent, 8 for the key */

/* KV pages of a model, each for 64 tokens in all layers, that its sessions share.  A session without a pool has pages of its own,
 * as many as it needs; a pool bounds them all together, and may keep the pages of prompts for later ones that begin alike. */
typedef struct dsv2_pool dsv2_pool;

typedef struct dsv2_pool_params {
    size_t struct_size;
    int32_t kv_type;    /* DSV2_KV_* of every page; default BF16 */
    int32_t reserved;   /* 0 */
    uint64_t tokens;    /* size in tokens (up to whole pages), or */
    uint64_t bytes;     /* in bytes (down to whole pages); neither (default): unbounded.  A bounded pool takes its memory at once */
    uint64_t prefix_cache_bytes;    /* pages that the prefix cache may hold; default 0: there is none */
} dsv2_pool_params;

DSV2_API void dsv2_pool_params_init(dsv2_pool_params *params, size_t size);

/* Create a pool; it keeps its model alive, and its sessions keep it.  Any thread may use it.
 *
 * The prefix cache: pages that sessions of the pool have filled enter it, and dsv2_session_prefill and dsv2_step take the longest
 * stored beginning of a new prompt from it, at most all tokens but the last, instead of computing it; none when scores are wanted, and
 * none from the other members of its own step.  Tokens are compared, not only hashes.  Only sessions with the same cache_namespace
 * share, and only what was computed in the form of attention that the prompt would be computed in, so that a session's results do not
 * tell what was found.  Pages that no session holds are given up, least recently used first, when a page or room in the cache is
 * needed.
 * Errors: INVALID, NOMEM, FORKED. */
DSV2_API dsv2_status dsv2_pool_create(dsv2_model *model, const dsv2_pool_params *params, dsv2_pool **out);
DSV2_API void dsv2_pool_free(dsv2_pool *pool);

/* State of a pool and counts since its creation.  Output struct: set struct_size. */
typedef struct dsv2_pool_info {
    size_t struct_size;
    int32_t kv_type, page_tokens;
    uint64_t page_bytes;
    uint64_t pages;             /* in all; 0: unbounded */
    uint64_t pages_used;        /* held by sessions; a page that several share counts once */
    uint64_t pages_cached;      /* in the prefix cache */
    uint64_t pages_idle;        /* of these held by no session: to be had like free ones */
    uint64_t prompt_tokens;     /* tokens of prompts that were looked for in the cache */
    uint64_t reused_tokens;     /* of these found */
    uint64_t entered, evicted;  /* pages into and out of the cache */
} dsv2_pool_info;

DSV2_API dsv2_status dsv2_pool_get_info(dsv2_pool *pool, dsv2_pool_info *info);

/* ---- Session --------------------------------------------------------------------------------------------------------- */

typedef struct dsv2_session dsv2_session;

#define DSV2_ATTENTION_ABSORBED 0 /* the same bits however a prompt is cut into calls */
#define DSV2_ATTENTION_EXPANDED 1 /* per-head keys and values rebuilt from the latents */
#define DSV2_ATTENTION_AUTO 2     /* expanded for long prompts, absorbed otherwise: whichever costs less */

struct dsv2_session_params {
    size_t struct_size;
    int32_t n_ctx;      /* context length in tokens; 0 (default) = the smaller of max_position_embeddings and what memory allows, but at
                         * least 64 (the log has a warning when memory is why).  Above max_position_embeddings: INVALID. */
    int32_t kv_type;    /* DSV2_KV_*; default BF16.  With a pool: the pool's */
    int32_t attention;  /* DSV2_ATTENTION_*; default ABSORBED */
    int32_t n_batch;    /* tokens computed at a time while a prompt is read, 1..4096; default 256.  More is faster, and takes more scratch */
    dsv2_progress_fn progress;  /* tokens of a prompt; called between pieces of n_batch tokens; default NULL.  Calls on the session from
                                 * it fail with STATE, but for position, capacity, tokens and cancel; it must not free the session */
    void *progress_user;
    dsv2_pool *pool;            /* of the same model; default NULL: pages of its own */
    uint64_t cache_namespace;   /* prefixes are shared only between sessions of the same one; default 0 */
};

DSV2_API void dsv2_session_params_init(dsv2_session_params *params, size_t size);

/* Create an empty session.  Cache pages are taken as the sequence grows.  The session keeps its model alive.
 * Errors: INVALID, NOMEM, FORKED. */
DSV2_API dsv2_status dsv2_session_create(dsv2_model *model, const dsv2_session_params *params, dsv2_session **out);
DSV2_API void dsv2_session_free(dsv2_session *s);

/* Memory that this session and its model take when the context is full. */
DSV2_API dsv2_status dsv2_session_memory(const dsv2_session *s, dsv2_memory *memory);

/* How well a token was foretold by those before it (raw logits, natural log). */
typedef struct dsv2_token_score {
    float logprob;      /* NaN for the first token of a sequence: nothing foretold it */
    int32_t rank;       /* 1 = most likely; tokens with an equal logit share the better rank; 0 with a NaN logprob */
    int32_t top_token;  /* the most likely token there, lowest id on ties; -1 with a NaN logprob */
    float top_logprob;
} dsv2_token_score;

#define DSV2_STEP_DECODED 1u   /* the tokens are output of the session, not prompt */
#define DSV2_STEP_NO_LOGITS 2u /* no logits after the last token: the session has none then */

/* One session's part of a step. */
typedef struct dsv2_sample_params dsv2_sample_params;

typedef struct dsv2_step_member {
    dsv2_session *session;
    const int32_t *tokens;      /* n_tokens >= 1: a prompt, a piece of one, a generated token */
    size_t n_tokens;
    dsv2_token_score *scores;   /* NULL, or (n_tokens), score_size apart: as dsv2_session_score */
    size_t score_size;
    uint32_t flags;             /* DSV2_STEP_* */
    dsv2_status status;         /* set by the step */
    const dsv2_sample_params *sample; /* NULL, or choose the token after the last one: as dsv2_sample would after the step.  With
                                 * DSV2_STEP_NO_LOGITS no logits need to leave the device */
    int32_t token;              /* the choice, set by the step; it is not appended */
    float logprob;              /* as of dsv2_sample */
} dsv2_step_member;

/* Append tokens to n different sessions of one model at once; the weights are read once for all, 1 to max(n_batch) tokens at a time.
 * Pages are reserved for the members in their order before anything is computed.  A member that fails (its status: INVALID, CONTEXT_FULL,
 * NO_PAGES, NOMEM, CANCELLED, NUMERIC) is as before, but that it may have no logits, and the others do not notice.  A session's results do
 * not depend on its company; on CUDA their last bits do, unless the context is invariant.  DEVICE is every member's.
 * OK if every member succeeded, else the status of the one that failed last, of which dsv2_last_error() tells.
 * INVALID for a member that makes no sense (NULL, no tokens, a session that is in it twice or has another model), UNSUPPORTED (a newer
 * sample struct) and FORKED: nothing is done and no status is set.  member_size: sizeof(dsv2_step_member).
 * Threads: the sessions are the calling thread's; steps of several threads take turns. */
DSV2_API dsv2_status dsv2_step(dsv2_step_member *members, size_t member_size, size_t n);

/* Append n >= 1 prompt tokens and compute the logits after the last.  What was decoded before counts as prompt from here on.
 * Errors, each leaving the session as it was: INVALID (an id), CONTEXT_FULL, NO_PAGES, NOMEM, CANCELLED, STATE (called by a callback of the
 * session's own step), FORKED. */
DSV2_API dsv2_status dsv2_session_prefill(dsv2_session *s, const int32_t *tokens, size_t n);

/* Append one generated token and compute the logits after it.  Errors as prefill. */
DSV2_API dsv2_status dsv2_session_decode(dsv2_session *s, int32_t token);

/* Prefill that also scores every one of its tokens: scores[i] (score_size = sizeof(dsv2_token_score) apart) is for tokens[i].
 * Takes memory for a few rows of logits at most, whatever n is; after a truncate a page more while it runs.  How tokens are cut into
 * calls shows in the last bits of logprobs at most: the first of a call is summed in double, the others in fp32.
 * Errors as prefill; scores is then unspecified. */
DSV2_API dsv2_status dsv2_session_score(dsv2_session *s, const int32_t *tokens, size_t n, dsv2_token_score *scores,
                                        size_t score_size);

/* Logits after the last token: *n = vocab_size floats, owned by the session, valid until its next prefill, decode, score, truncate,
 * restore, import or free.  Errors: STATE (nothing evaluated yet, or truncated since). */
DSV2_API dsv2_status dsv2_session_logits(const dsv2_session *s, const float **logits, size_t *n);

typedef struct dsv2_logprob {
    int32_t token;
    int32_t rank;   /* 1 = most likely */
    float logprob;
} dsv2_logprob;

/* The n_top most likely next tokens, best first (equal ones by id), from log_softmax of the raw logits.  If also >= 0, that token follows at
 * index n_top unless it is already among them.  *n is the count stored.  Errors: STATE, INVALID, BUFFER, NOMEM, NUMERIC (NaN, infinity,
 * or nothing but -infinity among the logits). */
DSV2_API dsv2_status dsv2_session_logprobs(const dsv2_session *s, int32_t n_top, int32_t also, dsv2_logprob *out,
                                           size_t out_size, size_t capacity, size_t *n);

/* Tokens evaluated so far, and how many fit. */
DSV2_API size_t dsv2_session_position(const dsv2_session *s);
DSV2_API size_t dsv2_session_capacity(const dsv2_session *s);

/* The evaluated tokens, position of them; owned by the session, valid until its next prefill, decode, score, truncate, restore,
 * import or free. */
DSV2_API const int32_t *dsv2_session_tokens(const dsv2_session *s);

/* Keep the first n tokens; logits are gone unless n is the position.  Errors: INVALID (n above the position). */
DSV2_API dsv2_status dsv2_session_truncate(dsv2_session *s, size_t n);

/* A second session with the same past; later changes to one do not touch the other.  Cache pages are shared until written. */
DSV2_API dsv2_status dsv2_session_fork(const dsv2_session *s, dsv2_session **out);

/* Save a session in a file: its tokens, which of them are prompt, their cache, and the logits if it has any.  Sampling depends on nothing
 * else but its parameters, so this is its whole state.  What an older file at path holds stays whole until the new one is complete and on
 * the disk: it is written beside (path with an ending of ".XXXXXX", mode 0600), then renamed; an interrupted process may leave that file.
 * A symbolic link at path is replaced.  Errors: IO, NOMEM, FORKED. */
DSV2_API dsv2_status dsv2_session_save(const dsv2_session *s, const char *path);

/* Put a session into the state of a saved one, of the same model and kv_type.  What else it was created with stays; with the same
 * attention, on the same machine, it goes on to the same bits.  The pages come from its pool, while it still holds those that it has.
 * They do not enter the prefix cache, nor does what follows them.
 * Damage is found by checksums, but they are no signature: who can write the file can make up a session's past.
 * Errors, each leaving the session as it was: IO, FORMAT (damaged, or saved with another model), UNSUPPORTED (by a newer library),
 * INVALID (kv_type), CONTEXT_FULL, NO_PAGES, NOMEM, FORKED. */
DSV2_API dsv2_status dsv2_session_restore(dsv2_session *s, const char *path);

/* The same to a caller's buffer, and from it: *n is the count of bytes.  export's errors: BUFFER, NOMEM, FORKED; import's as restore's. */
DSV2_API dsv2_status dsv2_session_export(const dsv2_session *s, void *buf, size_t capacity, size_t *n);
DSV2_API dsv2_status dsv2_session_import(dsv2_session *s, const void *buf, size_t n);

/* Ask the computing call on this session to stop; callable from any thread.  That call, or the next one, returns CANCELLED
 * with the session as it was, and the request is spent. */
DSV2_API void dsv2_session_cancel(dsv2_session *s);

/* ---- Sampling -------------------------------------------------------------------------------------------------------- */

typedef struct dsv2_logit_bias {
    int32_t token;
    float bias; /* added to the logit, clamped to -100..100; -100 or less bans as good as always */
} dsv2_logit_bias;

/* May edit the n logits in place: after logit_bias and penalties, before temperature.  Return nonzero to cancel the call.  It must not
 * use the session. */
typedef int32_t (*dsv2_logits_fn)(void *user, float *logits, size_t n);

/* Steps in this order (those of vLLM): min_tokens, logit_bias, repetition_penalty, frequency and presence penalty, callback,
 * greedy if temperature < 1e-5; else temperature, min_p, top_k, top_p, draw.  Defaults come from the model's generation_config.json. */
struct dsv2_sample_params {
    size_t struct_size;
    float temperature;          /* >= 0; below 1e-5 = greedy (lowest id on ties); 1e-5..0.01 counts as 0.01; default 1 */
    float top_p;                /* (0, 1]; default 1 */
    float min_p;                /* [0, 1]; default 0 */
    int32_t top_k;              /* >= 1, or 0 or -1 = off; default off */
    float repetition_penalty;   /* > 0, on prompt and output; default 1 */
    float presence_penalty;     /* [-2, 2], on output = tokens decoded since the last prefill; default 0 */
    float frequency_penalty;    /* [-2, 2], the same; default 0 */
    int32_t min_tokens;         /* no eos or stop token before so many output tokens; default 0 */
    uint64_t seed;              /* draws depend on seed, position and logits only; default 0 */
    const dsv2_logit_bias *logit_bias;
    size_t n_logit_bias, logit_bias_size; /* size: sizeof(dsv2_logit_bias) */
    const int32_t *stop_tokens; /* besides eos; only min_tokens looks at them */
    size_t n_stop_tokens;
    dsv2_logits_fn callback;
    void *callback_user;
};

/* model may be NULL: defaults as in the comments above. */
DSV2_API void dsv2_sample_params_init(dsv2_sample_params *params, size_t size, const dsv2_model *model);

/* Choose the next token from the session's logits; the session does not change.  The draw is an exponential race with
 * Philox4x32-10 keyed by seed and counted by position and token id: the same logits give the same token anywhere.
 * Padding ids are never chosen.  logprob (may be NULL) gets the token's log_softmax of the raw logits.
 * Errors: STATE, INVALID (names the field), NUMERIC (NaN, or every token banned), CANCELLED. */
DSV2_API dsv2_status dsv2_sample(const dsv2_session *s, const dsv2_sample_params *params, int32_t *token, float *logprob);

#ifdef __cplusplus
}
#endif
#endif
