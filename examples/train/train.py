"""Train the bundled model on the CPU from generated data.

    python train.py --tokens 16e6 --state /tmp/state --model ../model

Seeded and resumable: the state files are written every few minutes and read again
when they exist.  Muon drives the matrices, AdamW the rest; an average of the
recent weights is what is exported.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.multiprocessing as mp
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

import data
from model import Config, Model, export_state, plant_induction

# Progress at which a phase begins, its longest sequence, and the shares of tokens by kind.
Phase = tuple[float, int, dict[str, float]]
PHASES: list[Phase] = [
    (0.00, 128, {"english": 0.10, "retrieval": 0.20, "addition": 0.06, "chat": 0.58, "copy": 0.06}),
    (0.35, 256, {"english": 0.10, "retrieval": 0.18, "addition": 0.05, "chat": 0.63, "copy": 0.04}),
    (0.70, 512, {"english": 0.10, "retrieval": 0.22, "addition": 0.04, "chat": 0.61, "copy": 0.03}),
    (0.82, 1024, {"english": 0.10, "retrieval": 0.30, "addition": 0.04, "chat": 0.54, "copy": 0.02}),
    (0.95, 2048, {"english": 0.10, "retrieval": 0.36, "addition": 0.04, "chat": 0.50, "copy": 0.00}),
]
WARMUP, DECAY_FROM = 0.01, 0.3  # in progress; linear to zero after DECAY_FROM


def rate(progress: float) -> float:
    return min(1.0, progress / WARMUP + 0.02, max(0.0, (1 - progress) / (1 - DECAY_FROM)))


def orthogonal(g: Tensor, steps: int = 4) -> Tensor:
    """Newton-Schulz iteration towards the nearest semi-orthogonal matrix; g is [N, rows, columns]."""
    tall = g.shape[1] > g.shape[2]
    x = (g.mT if tall else g).bfloat16()
    x = x / (x.float().norm(dim=(1, 2), keepdim=True) + 1e-7).bfloat16()
    for _ in range(steps):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * (a @ a)) @ x
    return (x.mT if tall else x).float()


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalized.  `blocks` cuts a matrix by rows where it is really
    several (one per head, gate and up), which is cheaper and treats each alike."""

    def __init__(self, groups: list[dict[str, Any]], lr: float, momentum: float = 0.95, decay: float = 0.05) -> None:
        super().__init__(groups, {"lr": lr, "momentum": momentum, "decay": decay, "blocks": 1})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                buf = self.state[p].setdefault("momentum", torch.zeros_like(p))
                buf.lerp_(p.grad, 1 - group["momentum"])
                g = p.grad.lerp(buf, group["momentum"])
                g = g.reshape(-1, p.shape[-2] // group["blocks"], p.shape[-1])
                u = orthogonal(g).view_as(p) * max(1.0, g.shape[1] / g.shape[2]) ** 0.5
                p.mul_(1 - group["lr"] * group["decay"]).add_(u, alpha=-group["lr"])


def optimizers(m: Model, muon_lr: float, adam_lr: float, rank: int, world: int) -> tuple[list[torch.optim.Optimizer], list[str]]:
    """The optimizers of this rank's share of the parameters, and their names."""
    c, by_blocks, rest, names, work = m.c, {}, [], [], [0] * world
    cost = {n: p.numel() * (min(p.shape[-2:]) if p.ndim > 1 and p.shape[0] != c.vocab_size else 4) for n, p in m.named_parameters()}
    params = dict(m.named_parameters())
    for name in sorted(cost, key=lambda n: -cost[n]):
        owner = work.index(min(work))
        work[owner] += cost[name]
        if owner != rank:
            continue
        p = params[name]
        names.append(name)
        if p.ndim < 2 or name.startswith(("embed_tokens", "lm_head")) or name.endswith("mlp.gate.weight"):
            rest.append(p)
            continue
        blocks = 1
        if "q_b_proj" in name:
            blocks = c.num_attention_heads
        elif "kv_b_proj" in name or "experts_gate_up" in name:
            blocks = 2 * c.num_attention_heads if "kv_b" in name else 2
        by_blocks.setdefault(blocks, []).append(p)
    muon = Muon([{"params": ps, "blocks": b} for b, ps in by_blocks.items()], lr=muon_lr)
    return [muon, torch.optim.AdamW(rest, lr=adam_lr, betas=(0.9, 0.95), eps=1e-10, weight_decay=0.0)], names


def write_model(c: Config, state: dict[str, Tensor], folder: Path, tok: Tokenizer) -> None:
    """The checkpoint folder in the Hugging Face layout; each file is replaced at once."""
    tensors = export_state(c, state)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors.tmp", {"format": "pt"})
    os.replace(folder / "model.safetensors.tmp", folder / "model.safetensors")
    ids = {"bos_token_id": tok.token_to_id(data.BOS), "eos_token_id": tok.token_to_id(data.EOS)}
    config = c.to_json() | ids
    generation = {"_from_model_config": True, **ids, "do_sample": True, "temperature": 0.3, "top_p": 0.95, "transformers_version": "4.39.3"}
    for name, d in (("config.json", dict(sorted(config.items()))), ("generation_config.json", generation)):
        (folder / name).write_text(json.dumps(d, indent=2) + "\n")


def loss_of(m: Model, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """Weighted mean loss; the loss of each scored token and its place; experts' loads."""
    h, aux, counts = m(x, torch.bfloat16)
    at = (w[:, 1:] > 0).flatten().nonzero().squeeze(1)
    h = h[:, :-1].flatten(0, 1)[at]
    nll = F.cross_entropy(m.lm_head(h).float(), x[:, 1:].flatten()[at], reduction="none")
    weight = w[:, 1:].flatten()[at]
    return (nll * weight).sum() / weight.sum() + m.c.aux_loss_alpha * aux, nll.detach(), at, counts


def worker(rank: int, args: argparse.Namespace, m: Model, ema: dict[str, Tensor], grads: Tensor, counts: Tensor, barrier: Any) -> None:
    """One process, one thread.  The parameters lie in shared memory; each process
    adds its gradients to a row of `grads` and updates its share of the parameters.
    Unlike two threads within each operation this loses little when other programs run."""
    torch.set_num_threads(1)
    world = args.processes
    tok = Tokenizer.from_file(str(args.model / "tokenizer.json"))
    opts, mine = optimizers(m, args.muon_lr, args.adam_lr, rank, world)
    base = [[g["lr"] for g in o.param_groups] for o in opts]
    params, live, at_byte = dict(m.named_parameters()), m.state_dict(), 0
    rows: dict[str, list[Tensor]] = {}
    for name, p in params.items():
        rows[name] = [grads[r, at_byte : at_byte + p.numel()].view_as(p) for r in range(world)]
        p.grad = rows[name][rank]
        at_byte += p.numel()
    files = [args.state.with_suffix(f".{r}.pt") for r in range(world)]
    step, seconds = 0, 0.0
    if files[rank].exists():
        s = torch.load(files[rank], weights_only=True)
        for o, d in zip(opts, s["opts"]):
            o.load_state_dict(d)
        step, seconds = s["step"], s["seconds"]
        with torch.no_grad():
            for name in mine:
                live[name].copy_(s["model"][name])
                ema[name].copy_(s["ema"][name])
        counts[rank] = s["tokens"]
    barrier.wait()
    tokens = int(counts.sum())
    mix = data.Mixture(tok, (args.seed * 1_000_003 + step) * world + rank)  # a resumed run draws other documents

    phase, last = -1, time.time()
    saved = exported = logged = last
    kinds_n = len(mix.KINDS)
    sums, ns, since = np.zeros(kinds_n), np.zeros(kinds_n), tokens
    loads: list[Tensor] = [torch.zeros(m.c.n_routed_experts) for _ in m.layers]
    while tokens < args.tokens:
        progress = tokens / args.tokens
        now = max(i for i, p in enumerate(PHASES) if p[0] <= progress)
        if now != phase:
            phase = now
            mix.new_phase()
        _, longest, shares = PHASES[phase]
        x, w, kinds = mix.batch(shares, longest, args.batch // world)
        grads[rank].zero_()
        loss, nll, at, sent = loss_of(m, torch.from_numpy(x), torch.from_numpy(w))
        loss.backward()
        counts[rank] += x.size
        barrier.wait()
        step, tokens = step + 1, int(counts.sum())
        # The average reaches back over a few per cent of the run, and less near the end.
        keep = min(0.99, 1 - 1 / (step + 1)) if progress < 0.9 else 0.96
        with torch.no_grad():
            for name in mine:
                params[name].grad = sum(rows[name]) / world  # type: ignore[assignment]
            for o, lrs in zip(opts, base):
                for g, lr in zip(o.param_groups, lrs):
                    g["lr"] = lr * rate(progress)
                o.step()
            for name in mine:
                params[name].grad = rows[name][rank]
            torch._foreach_lerp_([ema[n] for n in mine], [live[n] for n in mine], 1 - keep)
        barrier.wait()

        # Per kind, the loss over the tokens that count fully (for retrieval: the answers).
        full = torch.from_numpy(w[:, 1:]).flatten()[at] >= 1
        row = kinds[(at // (x.shape[1] - 1)).numpy()][full.numpy()]
        sums += np.bincount(row, nll[full].double().numpy(), kinds_n)
        ns += np.bincount(row, minlength=kinds_n)
        loads = [a + c if len(c) else a for a, c in zip(loads, sent)]
        t = time.time()
        seconds, last = seconds + t - last, t
        if rank == 0 and (t - logged > 20 or tokens >= args.tokens):
            parts = " ".join(f"{k} {a / max(n, 1):.3f}" for k, a, n in zip(mix.KINDS, sums, ns))
            used = [c / c.mean() for c in loads if c.sum() > 0]
            print(
                f"step {step} {tokens / 1e6:.2f}M {progress:.3f} len {longest} lr {rate(progress):.2f} {parts} "
                f"experts {min(float(c.min()) for c in used):.2f}..{max(float(c.max()) for c in used):.2f} "
                f"{(tokens - since) / (t - logged):.0f} tok/s {seconds / 60:.1f} min",
                flush=True,
            )
            sums[:], ns[:], since, logged = 0, 0, tokens, t
            loads = [torch.zeros_like(c) for c in loads]
        if step % args.save_every == 0 or tokens >= args.tokens:
            state = {"model": {n: live[n] for n in mine}, "ema": {n: ema[n] for n in mine}, "opts": [o.state_dict() for o in opts]}
            tmp = files[rank].with_suffix(".tmp")
            torch.save(state | {"step": step, "tokens": int(counts[rank]), "seconds": seconds}, tmp)
            barrier.wait()  # all files are of one step
            os.replace(tmp, files[rank])
        if rank == 0 and args.export_every and t - exported > 60 * args.export_every:
            write_model(m.c, ema, args.state.parent / "export", tok)
            exported = t
    barrier.wait()
    if rank == 0:
        write_model(m.c, ema, args.model, tok)


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--tokens", type=float, default=16e6, help="tokens in all; may be changed when resuming")
    ap.add_argument("--batch", type=int, default=4096, help="tokens per step, padding included")
    ap.add_argument("--muon-lr", type=float, default=0.012)
    ap.add_argument("--adam-lr", type=float, default=3e-3)
    ap.add_argument("--seed", type=int, default=1)
    ap.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    ap.add_argument("--state", type=Path, default=Path("train"), help="prefix of the files to resume from, one per process")
    ap.add_argument("--save-every", type=int, default=100, help="steps")
    ap.add_argument("--model", type=Path, default=Path(__file__).parent / "../model", help="folder with tokenizer.json; the result goes there")
    ap.add_argument("--export-every", type=float, default=0, help="minutes; the model as it is goes to `export` beside the state files")
    args = ap.parse_args()

    torch.manual_seed(args.seed)
    tok = Tokenizer.from_file(str(args.model / "tokenizer.json"))
    m = Model(Config(bos_token_id=tok.token_to_id(data.BOS), eos_token_id=tok.token_to_id(data.EOS)))
    plant_induction(m)
    m.share_memory()
    ema = {k: v.clone().share_memory_() for k, v in m.state_dict().items()}
    grads = torch.zeros(args.processes, sum(p.numel() for p in m.parameters())).share_memory_()
    counts = torch.zeros(args.processes, dtype=torch.int64).share_memory_()
    barrier = mp.get_context("spawn").Barrier(args.processes)
    mp.spawn(worker, (args, m, ema, grads, counts, barrier), nprocs=args.processes)


if __name__ == "__main__":
    main()
