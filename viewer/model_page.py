"""the emotion models that are installed -> the page of the one in use: how good it is, its card, and all versions"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import streamlit as st

from ferflow.emotions import EMOTIONS
from ferflow.errors import FerflowError
from models.emotion_classifier import read_description
from models.store import InstalledModel, ModelStore, Promotion, Verdict
from viewer import theme
from viewer.settings import watching
from viewer.theme import escaped

_CARD_FILE, _RELIABILITY_FILE = "MODEL_CARD.md", "reliability.png"
_MOST_CARD_LETTERS = 200_000
_WHITE_ON = 0.85
# From this share on white reads better than black on the main colour thinned by it.
_SPLITS = {
    "test": "test images",
    "test_unseen": "test images whose photo is in no other set",
    "test_mirrored": "test images, averaged with their mirror image",
    "ferplus": "test images, labelled by the crowd's top vote (FER+)",
    "ferplus_majority": "test images, labelled by FER+'s stricter majority",
    "validation": "validation images",
}


def show() -> None:
    """Show the page."""
    st.html(f"<style>{_STYLE}</style>")
    theme.title("Model", "What names the emotions, and how well it does that.")
    try:
        store = ModelStore()
        models, promotions = _models(store), store.promotions()
    except (FerflowError, OSError) as error:
        theme.unreadable("The emotion models", error)
        return
    model = _choose(models)
    metrics = {model.description.version: model.metrics() for model in models}
    its = metrics[model.description.version]
    _show_facts(model, its)
    # A place of its own even without a verdict: tabs whose place among the elements changes open their first one again.
    with st.container():
        if model.verdict is not None:
            _show_verdict(model.verdict)
    quality, training, card, versions = st.tabs(["How well it does", "How it learnt", "Card", "All versions"])
    with quality:
        _show_quality(model, its)
    with training:
        _show_training(model.description.history)
    with card:
        _show_card(model)
    with versions:
        st.html(_versions_html(models, metrics, promotions))


def _models(store: ModelStore) -> list[InstalledModel]:
    """Every version, and the one that the analyses of these settings use, which may be none of the store's."""
    path = store.find(watching().settings.model)
    used = read_description(path)
    models = [replace(model, is_in_use=model.description.version == used.version) for model in store.versions()]
    if not any(model.is_in_use for model in models):
        models.append(InstalledModel(path, used, is_in_use=True, is_shipped=False, verdict=None))
    return models


def _choose(models: Sequence[InstalledModel]) -> InstalledModel:
    """The version in use, or another if somebody wants to look at that."""
    by_version = {model.description.version: model for model in models}
    if len(models) == 1:
        return models[0]
    names = list(by_version)
    chosen = st.selectbox(
        "Version",
        names,
        index=names.index(next(model.description.version for model in models if model.is_in_use)),
        key="version",
        format_func=lambda name: f"{name} · {_state(by_version[name])}",
        width=420,
    )
    return by_version[chosen]


def _state(model: InstalledModel) -> str:
    if model.is_in_use:
        return "in use"
    if model.verdict is not None and model.verdict.decision == "refused":
        return "refused"
    return "came with ferflow" if model.is_shipped else "installed"


def _show_facts(model: InstalledModel, metrics: Mapping[str, Any]) -> None:
    description = model.description
    test = _mapping(metrics.get("test"))
    trained = [
        "came with ferflow" if model.is_shipped else "added here",
        f"trained on {description.saved_at[:10]}" if description.saved_at else "",
        f"by commit {description.commit[:8]}" if description.commit else "",
    ]
    about = ", ".join(part for part in trained if part)
    st.html(
        f'<p class="ff-version"><b>{escaped(description.version)}</b> <span class="ff-state">{_state(model)}</span> '
        f"{escaped(about)}</p>"
    )
    theme.tiles(
        [
            ("accuracy", _percent(test.get("accuracy"))),
            ("macro-F1", f"{test['macro_f1']:.3f}" if _is_number(test.get("macro_f1")) else "–"),
            ("calibration error", _percent(test.get("calibration_error"))),
            ("test images", f"{test['image_count']:,}" if _is_number(test.get("image_count")) else "–"),
            ("face crop", f"{description.crop_size_px} px"),
        ]
    )


def _show_verdict(verdict: Verdict) -> None:
    show = st.success if verdict.decision == "promoted" else st.warning
    done = "Taken into use" if verdict.decision == "promoted" else "Refused"
    heading = f"{done} on {verdict.decided_at.date().isoformat()}, compared with {verdict.compared_with}:"
    show("\n".join([heading, "", *(f"- {theme.plain(reason)}" for reason in verdict.reasons)]), icon=":material/gavel:")


def _show_quality(model: InstalledModel, metrics: Mapping[str, Any]) -> None:
    confusion = _confusion(_mapping(metrics.get("test")).get("confusion"))
    matrix, beside = st.columns((3, 2), gap="large")
    with matrix:
        st.subheader("Which emotion it takes for which")
        if confusion is None:
            st.info("This version keeps no confusion matrix.")
        else:
            st.caption("A row for each label, a column for each answer; shares of the row. Test images.")
            st.html(_confusion_html(confusion))
    with beside:
        st.subheader("How sure, how right")
        reliability = model.path / _RELIABILITY_FILE
        if reliability.is_file():
            st.image(str(reliability))
        else:
            error = _percent(_mapping(metrics.get("test")).get("calibration_error"))
            st.info(f"This version keeps no picture of its reliability. Its expected calibration error is {error}.")
    st.subheader("On which images")
    st.html(_metrics_html(metrics))


def _show_training(history: Sequence[Mapping[str, Any]]) -> None:
    shown = False
    for what, title, scale in (("accuracy", "Accuracy, %", 100), ("loss", "Loss", 1)):
        rows = [
            {
                "epoch": epoch["number"],
                "training, varied images": scale * epoch[f"train_{what}"],
                "validation": scale * epoch[f"validation_{what}"],
            }
            for epoch in map(_mapping, history)
            if all(_is_number(epoch.get(name)) for name in ("number", f"train_{what}", f"validation_{what}"))
        ]
        if rows:
            shown = True
            st.subheader(title)
            columns = {name: [row[name] for row in rows] for name in rows[0]}
            curves = ["training, varied images", "validation"]
            st.line_chart(columns, x="epoch", y=curves, y_label=title, color=[theme.MUTED, theme.LINK], height=280)
    if not shown:
        st.info("This version does not say how its training went.")


def _show_card(model: InstalledModel) -> None:
    path = model.path / _CARD_FILE
    if not path.is_file():
        st.info("This version has no card.")
        return
    text = path.read_text(encoding="utf-8", errors="replace")[:_MOST_CARD_LETTERS]
    lines = [line for line in text.splitlines() if not line.startswith("![")]
    # A stranger's card may not have the browser fetch pictures from elsewhere.
    st.markdown("\n".join(lines).replace("![", "["))


def _versions_html(
    models: Sequence[InstalledModel], metrics: Mapping[str, Mapping[str, Any]], promotions: Sequence[Promotion]
) -> str:
    rows = "".join(_version_html(model, metrics[model.description.version], promotions) for model in models)
    heads = "".join(f"<th>{name}</th>" for name in ("Version", "State", "Accuracy", "Trained", "Why"))
    return f'<table class="ff-versions"><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>'


def _version_html(model: InstalledModel, metrics: Mapping[str, Any], promotions: Sequence[Promotion]) -> str:
    reasons = [] if model.verdict is None else [f"{model.verdict.decision}: {' '.join(model.verdict.reasons)}"]
    reasons += [
        f"{'taken into use' if promotion.action == 'promote' else 'taken out of use'} on {promotion.at[:10]}"
        f"{f': {promotion.reason}' if promotion.reason else ''}"
        for promotion in promotions
        if promotion.version == model.description.version
    ]
    accuracy = _percent(_mapping(metrics.get("test")).get("accuracy"))
    why = "<br>".join(map(escaped, reasons)) or "–"
    return (
        f'<tr><th scope="row">{escaped(model.description.version)}</th><td>{_state(model)}</td>'
        f'<td data-name="Accuracy">{accuracy}</td>'
        f'<td data-name="Trained">{escaped(model.description.saved_at[:10]) or "–"}</td>'
        f'<td class="ff-why">{why}</td></tr>'
    )


def _confusion(value: object) -> list[list[int]] | None:
    """Counts, a row a label; None if that is not what it is."""
    size = len(EMOTIONS)
    if not isinstance(value, list) or len(value) != size:
        return None
    is_right = all(isinstance(row, list) and len(row) == size and all(map(_is_number, row)) for row in value)
    return value if is_right else None


def _confusion_html(confusion: Sequence[Sequence[int]]) -> str:
    primary = st.get_option("theme.primaryColor") or "#145fb4"
    head = "".join(f'<th scope="col"><span>{emotion}</span></th>' for emotion in EMOTIONS)
    body = ""
    for emotion, row in zip(EMOTIONS, confusion, strict=True):
        total = sum(row) or 1
        cells = ""
        for answer, count in zip(EMOTIONS, row, strict=True):
            share = count / total
            color = f"background:color-mix(in srgb,{primary} {100 * share:.0f}%,transparent)"
            ink = ";color:#fff" if share > _WHITE_ON else ";color:#000"
            meaning = f"{count:,} of {total:,} labelled {emotion} were taken for {answer}"
            text = f"<b>{share:.0%}</b>" if answer == emotion else f"{share:.0%}"
            cells += f'<td style="{color}{ink}" title="{meaning}">{text}</td>'
        body += f'<tr><th scope="row">{emotion}</th>{cells}</tr>'
    return f'<table class="ff-confusion"><thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table>'


def _metrics_html(metrics: Mapping[str, Any]) -> str:
    rows = ""
    for name, title in _SPLITS.items():
        split = _mapping(metrics.get(name))
        if not split:
            continue
        recall = _mapping(split.get("recall"))
        known = [(emotion, recall[emotion]) for emotion in EMOTIONS if _is_number(recall.get(emotion))]
        weakest = min(known, key=lambda pair: pair[1], default=None)
        rows += (
            f'<tr><th scope="row">{title}</th><td data-name="Accuracy">{_percent(split.get("accuracy"))}</td>'
            f'<td data-name="Weakest">{f"{weakest[0]} {weakest[1]:.0%}" if weakest else "–"}</td>'
            f'<td data-name="Calibration error">{_percent(split.get("calibration_error"))}</td></tr>'
        )
    heads = "".join(f"<th>{name}</th>" for name in ("Images", "Accuracy", "Weakest", "Calibration error"))
    return f'<table class="ff-versions"><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>'


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _is_number(value: object) -> bool:
    """Whether it can be written and drawn; a stranger's number may have hundreds of digits."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e15


def _percent(share: object) -> str:
    return f"{share:.1%}" if isinstance(share, float) and 0 <= share <= 1 else "–"


_STYLE = f"""
.ff-version {{margin: 0 0 .5rem}}
.ff-version b {{font-size: 1.15rem}}
.ff-state {{border: 1px solid currentColor; border-radius: 1rem; padding: .05rem .6rem; font-size: .8rem;
    margin: 0 .5rem}}
.ff-confusion {{width: 100%; border-collapse: separate; border-spacing: 2px; table-layout: fixed; font-size: .875rem;
    font-variant-numeric: tabular-nums}}
.ff-confusion th, .ff-confusion td {{border: 0; padding: 0; font-weight: 400; text-align: center}}
.ff-confusion td {{height: 2.75rem; border-radius: .25rem}}
.ff-confusion tbody th {{text-align: right; padding-right: .5rem}}
.ff-versions {{width: 100%; border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums}}
.ff-versions th, .ff-versions td {{border: 0; border-bottom: 1px solid rgba(128,128,128,.25); text-align: left;
    padding: .5rem .75rem .5rem 0; font-weight: 400; vertical-align: top}}
.ff-versions thead th {{font-size: .8rem; color: {theme.MUTED}}}
.ff-versions tbody th {{font-weight: 600}}
.ff-why {{width: 50%}}
@media (max-width: 760px) {{
    .ff-confusion {{font-size: .75rem; border-spacing: 1px}}
    .ff-confusion thead th {{height: 4.5rem; vertical-align: bottom}}
    .ff-confusion thead span {{writing-mode: vertical-rl; transform: rotate(180deg)}}
    .ff-confusion td {{height: 2.2rem}}
    .ff-versions thead {{display: none}}
    .ff-versions tr {{display: flex; flex-wrap: wrap; gap: 0 1rem; padding: .5rem 0;
        border-bottom: 1px solid rgba(128,128,128,.25)}}
    .ff-versions th, .ff-versions td {{border: 0; padding: 0}}
    .ff-versions tbody th, .ff-why {{width: 100%}}
    .ff-versions td[data-name]::before {{content: attr(data-name) " "; color: {theme.MUTED}}}
}}
"""
