"""Habits of other people's logs: what stands around a line, in what language and unit, and where they end."""

from pathlib import Path

import pytest

from analysis.logs.importing import import_logs, read_runs
from analysis.logs.record import Record
from analysis.runs.errors import AnalysisError
from tests.log_lines import step

CURVE = "".join(step(at, value) for at, value in ((1000, 2.5), (2000, 2.12)))


def read(tmp_path: Path, text: str, name: str = "a.log") -> list[Record]:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return read_runs(path)


def losses(record: Record) -> list[tuple[float, float | None]]:
    return [(point["step"], point.get("val_loss")) for point in record.curve]


@pytest.mark.parametrize(
    "form",
    [
        "Wed Nov 26 12:00:00 2025[1,0]<stdout>:step:{0}/300 val_loss:{1} val_bpb:1.3",
        "2025-11-26T12:00:01+0000 fc-01H step:{0}/300 val_loss:{1} val_bpb:1.3",
        "train\tRun training\t2025-11-26T12:00:00.1234567Z step:{0}/300 val_loss:{1} val_bpb:1.3",
        "1764158400{0} step:{0}/300 val_loss:{1} val_bpb:1.3",
        "> step:{0}/300 val_loss:{1} val_bpb:1.3",
        "logs/seed1.txt:{0}:step:{0}/300 val_loss:{1} val_bpb:1.3",
        "2025.11.26 1201 step {0} of 300, val_loss {1}",
        'level=info ts=2025-11-26T12:00:01Z msg="eval" step={0} val_loss={1} val_bpb=1.3 host=n1',
        "step {0}/300 val_loss tensor({1}, device='cuda:0')",
        "{{'step': {0}, 'val_loss': np.float64({1})}}",
        "micro_step {0}0 opt_step {0} val_loss {1}",
        "iter {0}0 (update {0}) | val_loss {1}",
        "step {0}/300 loss(train/val) 2.9/{1}",
        "step {0}/300 val_loss_sum 9999.9 val_loss_mean {1}",
        "Schritt {0} von 300: Trainingsverlust 2.9, Validierungsverlust {1}",
        "étape {0} sur 300 | perte d'entraînement : 2,9 | perte de validation : {1}",
        "paso {0} de 300, pérdida de validación: {1}",
        "шаг {0} из 300: потери на валидации {1}",
        "passo {0} de 300: perda de treino 2.9, perda de validação {1}",
        "passo {0} di 300: perdita di validazione {1}",
        "stap {0} van 300, validatieverlies {1}",
        "스텝 {0}/300 검증 손실: {1}",
        "第 {0} 步 训练损失 2.9 验证损失 {1}",
        "ステップ {0}/300 検証損失: {1}",
        "[{0}/300] train 2.91 val {1:.2f}",
        "it {0} | trn 2.91 | val {1:.2f}",
        "eval @ {0}: loss={1}, bpb=1.3",
        "(step {0}) validation: {1:.2f}",
        "VAL step {0} nll {1} bpb 1.3",
        "step: {0:,} / 3,000 val: {1:.2f} | bpb 1.3",
        "eval/loss {1} @ step {0}",
        "validation_loss: {1} (step {0})",
        "step {0}: dev loss {1}",
        "step {0} heldout_loss {1}",
        "After {0} steps the validation loss is {1}.",
        "step {0} val_ce {1}",
        "step {0} validation cross entropy: {1}",
        "step {0} val nll/token {1} bits/byte 1.3",
        "iter={0} tokens=1000000 val.loss={1} val.bpb=1.3",
        "2025-11-26T12:00:00Z [info     ] eval                           bpb=1.3 loss={1} step={0}",
    ],
)
def test_forms_of_others(tmp_path: Path, form: str) -> None:
    (record,) = read(tmp_path, "\n".join(form.format(s, 2.5 - s / 1000) for s in (100, 200, 300)) + "\n")
    assert losses(record) == [(100, 2.4), (200, 2.3), (300, 2.2)]


@pytest.mark.parametrize(
    "form",
    [
        "step {0} loss 2.95 eval 12.50 seconds",
        "step {0} loss 2.95 | val 1.50 GB",
        "step {0} eval 0.4512 acc",
        "step {0} eval/c4/loss {1} eval/wiki/loss 3.05",
        "step {0} val ppl 19.12",
    ],
)
def test_what_is_no_validation_loss_is_none(tmp_path: Path, form: str) -> None:
    lines = [form.format(s, 2.5 - s / 1000) for s in (100, 200, 300)]
    (record,) = read(tmp_path, "\n".join([*lines, step(400, 2.12, 400)]))
    assert losses(record) == [(400, 2.12)]


def test_what_grep_finds_in_several_files_are_several_runs(tmp_path: Path) -> None:
    lines = [f"logs/s{n}.txt:{s}:step:{s}/200 val_loss:{n + s / 1000}" for n in (1, 2) for s in (100, 200)]
    first, second = read(tmp_path, "\n".join(lines))
    assert (losses(first), losses(second)) == ([(100, 1.1), (200, 1.2)], [(100, 2.1), (200, 2.2)])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("run-seed1-tag-val_loss.csv", "Wall time,Step,Value\n1.1,100,2.4\n1.2,200,2.3\n"),
        ("a.csv", "metric,step,value\nval_loss,100,2.4\ntrain_loss,100,9\nval_loss,200,2.3\n"),
        ("a.csv", "_step,trainer/global_step,val_loss\n20,100,2.4\n40,200,2.3\n"),
        ("a.csv", "étape;perte_val\n100;2,4\n200;2,3\n"),
        ("a.csv", "step,train_nll,val_nll\n100,2.9,2.4\n200,2.8,2.3\n"),
        ("a.csv", "iteration,dev cross entropy\n100,2.4\n200,2.3\n"),
        ("a.csv", "steps,held-out loss,accuracy\n100,2.4,0.4\n200,2.3,0.5\n"),
        ("a.txt", " Step  Training Loss  Validation Loss\n  100  2.9       2.4000\n  200  2.8       2.3\n"),
        ("a.md", "| Step | Val loss |\n|---:|---:|\n| 100 | **2.4** |\n| 200 | **2.3** |\n"),
        ("a.json", '{"config":{"seed":3},"history":{"step":[100,200],"val_loss":[2.4,2.3]}}'),
    ],
)
def test_tables_of_others(tmp_path: Path, name: str, text: str) -> None:
    (record,) = read(tmp_path, text, name)
    assert losses(record) == [(100, 2.4), (200, 2.3)]


def test_a_table_with_a_row_for_each_metric_keeps_its_runs_apart(tmp_path: Path) -> None:
    rows = [f"{n},val_loss,{s},{n + s / 1000}" for n in (1, 2) for s in (100, 200)]
    first, second = read(tmp_path, "\n".join(["seed,metric,step,value", *rows]), "a.csv")
    assert (first.row["seed"], losses(first)) == (1, [(100, 1.1), (200, 1.2)])
    assert (second.row["seed"], losses(second)) == (2, [(100, 2.1), (200, 2.2)])


def test_records_name_their_seeds(tmp_path: Path) -> None:
    rows = [f'{{"seed":{n},"step":{s},"val_loss":{n + s / 1000}}}' for s in (100, 200) for n in (1, 2)]
    assert [record.row["seed"] for record in read(tmp_path, "\n".join(rows))] == [1, 2]


@pytest.mark.parametrize(
    ("head", "form", "empty"),
    [
        ("loss unit: bits per token\n", "step {0}/300 val_loss {1} val_bpb 1.3", "val_loss"),
        ("val_bpb below is in nats per byte\n", "step {0}/300 val_loss {1} val_bpb 1.3", "val_bpb"),
        ("", "step {0}/300 val_loss {1} bits val_bpb 1.3", "val_loss"),
    ],
)
def test_other_units_are_no_losses(tmp_path: Path, head: str, form: str, empty: str) -> None:
    text = head + "\n".join(form.format(s, 2.5 - s / 1000) for s in (100, 200, 300))
    (record,) = read(tmp_path, text)
    assert len(record.curve) == 3 and not any(empty in point for point in record.curve)


def test_a_quick_validation_is_none_where_others_are_whole(tmp_path: Path) -> None:
    quick = "step 500/2000 quick val_loss 9.9 (2 batches)\n"
    (record,) = read(tmp_path, quick + CURVE)
    assert [at for at, _ in losses(record)] == [1000, 2000]
    (alone,) = read(tmp_path, quick + quick.replace("500", "2000"))
    assert [at for at, _ in losses(alone)] == [500, 2000]


def test_bars_are_matched_to_records_by_the_epochs(tmp_path: Path) -> None:
    record = "{{'eval_loss': {1}, 'epoch': {2}}}\n"
    bar = " 50%|#####     | {0}/2000 [10:00<20:00,  1.11it/s]\n"
    points = ((1000, 2.5, 0.5), (2000, 2.4, 1.0))
    for form in (bar + record, record + bar):
        (run,) = read(tmp_path, "".join(form.format(*point) for point in points))
        assert losses(run) == [(1000, 2.5), (2000, 2.4)]
    with pytest.raises(AnalysisError, match=r"trainer_state\.json"):
        read(tmp_path, "".join(form.format(*point) for point in ((1000, 2.5, 0.5), (1100, 2.4, 1.0))))


def test_a_loss_that_was_skipped_is_no_divergence(tmp_path: Path) -> None:
    skipped = "step:1200/2000 train_loss:nan train_time:1ms\nloss is nan, skipping batch\n"
    (record,) = read(tmp_path, CURVE.replace("step:2000", skipped + "step:2000"))
    assert (record.row["status"], record.row["steps"]) == ("done", 2000)
    (diverged,) = read(tmp_path, CURVE.splitlines()[0] + "\n" + skipped)
    assert diverged.row["status"] == "diverged"


def test_what_wandb_repeats_is_no_end(tmp_path: Path) -> None:
    unfinished = CURVE.splitlines()[0] + "\nwandb: Run summary:\nwandb:   val_bpb 1.5\n"
    (record,) = read(tmp_path, unfinished)
    assert (record.row["status"], record.row["float_bpb"]) == ("unfinished", None)


def test_a_number_cut_by_the_end_of_the_file_is_none(tmp_path: Path) -> None:
    lines = [f"step:{s}/900 val_loss:2.4005 val_bpb:1.3005" for s in (100, 200, 300)]
    (record,) = read(tmp_path, "\n".join(lines)[:-3])
    assert [point.get("val_bpb") for point in record.curve] == [1.3005, 1.3005, None]
    (whole,) = read(tmp_path, "\n".join(lines))
    assert [point.get("val_bpb") for point in whole.curve] == [1.3005] * 3


@pytest.mark.parametrize(
    ("said", "steps"),
    [
        ("lr schedule: WSD warmup 100 stable 900 decay 1000", 1000),
        ("warmdown: last 20% of training", 400),
        ("warmdown starts at step 1600", 400),
        ("warmdown_steps=1.2k", 1200),
        ("warmdown_iters: 1200\noverriding warmdown_iters: 1200 -> 600", 600),
        ("LR schedule: constant then linear decay over last 800 steps", 800),
        ("trapezoidal schedule, decay_iters=800", 800),
        ("--warmdown-iters 800", 800),
        ("cooldown 0.4", 800),
        ("decay_frac=0.4", 800),
        ("stable_steps=1200, decay_steps=800", 800),
        ("wsd schedule: decay ratio 0.4", 800),
        ("anneal_steps: 800", 800),
        ("LR cooldown starts at 60% of training", 800),
        ("decay_start_step=1200", 800),
        ("lr_warmdown_ratio: 0.4", 800),
        ("cooldown: linear, 800 iterations", 800),
        ("cool-down steps: 800", 800),
        ("cosine decay to 0.1 over 2000 steps", None),
        ("lr_decay_iters = 2000", None),
        ("weight_decay: 0.1, ema_decay: 0.997", None),
        ("muon_momentum_cooldown_steps: 50", None),
        ("warmdown_iters ........ 800", 800),
        ("| warmdown_iters | 800 |", 800),
        ("warmdown_iters: 0", 0),
        ("warmdown_frac: 0.0", 0),
        ("warmdown_frac: 1.0", 2000),
        ("warmdown_iters: -1", None),
        # a moment of the run, not its setting
        ("entering the warmdown (80% done)", None),
        ("cooldown, GPU at 97 %", None),
        ("lr warmdown from 1 to 0", None),
    ],
)
def test_warmdowns_in_words(tmp_path: Path, said: str, steps: int | None) -> None:
    (record,) = read(tmp_path, f"iterations: 2000\n{said}\n{CURVE}")
    assert record.row["warmdown_steps"] == steps


def test_a_printed_learning_rate_tells_the_warmdown(tmp_path: Path) -> None:
    def rate(at: int) -> float:
        return 0.001 * min(1.0, (2000 - at) / 500)

    plain = [f"step {at} | loss: 2.4 | lr {rate(at):.4e} | norm 0.2" for at in range(100, 2001, 100)]
    records = [f"{{'loss': 2.4, 'learning_rate': {rate(at)}, 'step': {at}}}" for at in range(100, 2001, 100)]
    first, last = CURVE.splitlines()
    for lines in (plain, records):
        (record,) = read(tmp_path, "\n".join([*lines[:10], first, *lines[10:], last]))
        assert (record.row["warmdown_steps"], record.row["schedule"]) == (500, "linear")


@pytest.mark.parametrize(
    ("said", "column", "value"),
    [
        ("num_params = 17_059_912", "params", 17059912),
        ("draft model params: 1000000", "params", None),
        ("int6+zstd artifact bytes: 14400000", "artifact_bytes", 14400000),
        (
            "Serialized model int6+zstd: 14400000 bytes\nSerialized model int6+none: 19400000 bytes",
            "artifact_bytes",
            14400000,
        ),
    ],
)
def test_sizes_in_other_words(tmp_path: Path, said: str, column: str, value: int | None) -> None:
    text = f"{said}\n{CURVE}" if column == "params" else f"{CURVE}{said}\n"
    (record,) = read(tmp_path, text)
    assert record.row[column] == value


QUANTIZED = "Serialized model int6+zstd: 14400000 bytes\n"


@pytest.mark.parametrize(
    ("said", "column", "value"),
    [
        ("[final] quantized model bpb = 1.1312", "int6_bpb", 1.1312),
        ("Quantized (int6) BPB: 1.1312", "int6_bpb", 1.1312),
        ("final_bpb_int6=1.1312", "int6_bpb", 1.1312),
        ("post-quant bpb 1.1312", "int6_bpb", 1.1312),
        ("roundtrip bits per byte: 1.1312", "int6_bpb", 1.1312),
        ("int6 eval | loss 1.9100 | bpb 1.1312", "int6_bpb", 1.1312),
        ("val_bpb after int6 quantization: 1.1312", "int6_bpb", 1.1312),
        ("The int6 model reaches 1.1312 BPB.", "int6_bpb", 1.1312),
        ("float val_bpb: 1.1200 | int6 val_bpb: 1.1312 | delta 0.0112", "int6_bpb", 1.1312),
        ("pre-quant val_bpb: 1.1200 post-quant val_bpb: 1.1312", "int6_bpb", 1.1312),
        ("int6 | bpb: 1.1312 | sliding bpb: 1.1098", "int6_sliding_bpb", 1.1098),
        ("sliding window eval (stride=64): 1.1098 bpb", "int6_sliding_bpb", 1.1098),
        ("val_bpb (int6, sliding stride 64): 1.1098", "int6_sliding_bpb", 1.1098),
        ("after legal TTT: 1.0891 bpb", "ttt_bpb", 1.0891),
        ("val_bpb with EMA: 1.1190", "ema_bpb", 1.119),
        ("EMA eval: bpb 1.1190", "ema_bpb", 1.119),
        # of something else
        ("int6 baseline bpb: 1.2244", "int6_bpb", None),
        ("quant error bpb: 0.0112", "int6_bpb", None),
        ("quant gap: 0.0112 (1.1200 -> 1.1312)", "int6_bpb", None),
        ("best int6 bpb so far: 1.1312", "int6_bpb", None),
        ("estimated int6 bpb 1.1312", "int6_bpb", None),
        ("int6 bpb 1.1312s", "int6_bpb", None),
        ("sliding partial bpb 1.10 (10%)", "int6_sliding_bpb", None),
    ],
)
def test_finals_in_other_words(tmp_path: Path, said: str, column: str, value: float | None) -> None:
    (record,) = read(tmp_path, CURVE + QUANTIZED + said + "\n")
    assert record.row[column] == value


@pytest.mark.parametrize(
    "said",
    [
        "compressed artifact: 14400000 bytes",
        "Artifact size: 14,400,000 bytes (int6+zstd)",
        "saved final_model.int6.ptz (14400000 bytes)",
        "model_int6_bytes: 14400000",
    ],
)
def test_artifacts_in_other_words(tmp_path: Path, said: str) -> None:
    (record,) = read(tmp_path, f"{CURVE}{said}\nTotal submission size int6+zstd: 14468212 bytes\n")
    assert record.row["artifact_bytes"] == 14400000


def test_numbers_that_no_column_holds_are_none(tmp_path: Path) -> None:
    head = '{"params": 9' + "9" * 30 + ', "seed": 1' + "0" * 30 + ', "total_steps": 2000}\n'
    path = tmp_path / "a.log"
    path.write_text(head + CURVE + "Serialized model int6+zstd: 1" + "0" * 30 + " bytes\n", encoding="utf-8")
    (log,) = import_logs([path], tmp_path / "out.csv").logs
    assert [log.records[0].row[name] for name in ("params", "seed", "artifact_bytes")] == [None] * 3


@pytest.mark.parametrize(
    ("said", "params"),
    [
        ("total params = 8388608 (embeddings) + 8671304 (blocks) = 17059912", 17059912),
        ("params: 8388608 + 8671304", None),
        ("params: 17,059,912 (of which 8,388,608 embeddings)", 17059912),
    ],
)
def test_a_sum_of_parameters_is_its_sum(tmp_path: Path, said: str, params: int | None) -> None:
    (record,) = read(tmp_path, f"{said}\n{CURVE}")
    assert record.row["params"] == params


@pytest.mark.parametrize(
    "label",
    ["after applying EMA weights:", "using the exponential moving average of weights:", "with EMA applied:"],
)
def test_an_average_called_in_a_sentence(tmp_path: Path, label: str) -> None:
    (record,) = read(tmp_path, f"{CURVE}\n{label} val_loss:3.69 val_bpb:2.185\n")
    assert record.row["ema_bpb"] == 2.185
