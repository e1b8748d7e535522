"""The report's words and its style sheet: labels, definitions with their sources, CSS. No logic."""

from __future__ import annotations

KEY_NUMBERS: dict[str, tuple[str, str, str]] = {  # name -> label, note, how it is shown
    "ap": ("AP 50–95", "COCO", "percent"),
    "ap50": ("AP50", "COCO", "percent"),
    "ap75": ("AP75", "COCO", "percent"),
    "loss_alignment": ("loss from disagreement", "AP if scores followed IoU, minus AP", "percent"),
    "loss_scores": ("loss, scores' half", "of the split of 1 - AP: perfect scores", "percent"),
    "loss_boxes": ("loss, boxes' half", "of the split of 1 - AP: perfect boxes", "percent"),
    "ap_aligned": ("AP, scores re-dealt by IoU", "inside each object", "percent"),
    "ap_ranking": ("AP if scores were IoUs", "oracle ranking", "percent"),
    "ap_localisation": ("AP if boxes were perfect", "oracle localisation", "percent"),
    "rank": ("rank of the best box", "by score, before NMS, median; 1 is agreement", "rank"),
    "best_first": ("best box ranks first", "share of covered objects", "percent"),
    "gap": ("winner gap", "best IoU minus IoU of the top-scoring box", "plain"),
    "nms_removed": ("best box removed by NMS", "in favour of a worse one", "percent"),
    "below_floor": ("best box scored too low for NMS", "below conf, the floor before NMS", "percent"),
    "covered": ("covered objects", "some raw box has IoU 0.5", "percent"),
    "spearman": ("Spearman, score and IoU", "inside each object, before NMS", "plain"),
    "pearson": ("Pearson, score and IoU", "inside each object, before NMS", "plain"),
    "spearman_kept": ("Spearman, kept boxes", "score and IoU over all boxes after NMS", "plain"),
    "pearson_kept": ("Pearson, kept boxes", "the same boxes", "plain"),
    "olrp": ("oLRP", "0 is perfect", "percent"),
    "olrp_localisation": ("oLRP, localisation", "mean 1 - IoU of hits", "percent"),
    "olrp_false_positive": ("oLRP, false positives", "1 - precision", "percent"),
    "olrp_false_negative": ("oLRP, false negatives", "1 - recall", "percent"),
    "d_ece": ("D-ECE", "score against precision", "percent"),
    "la_ece": ("LaECE", "score against precision × IoU", "percent"),
    "threshold": ("optimal threshold", "score where LRP is least", "plain"),
}
LOWER_IS_BETTER = {
    "loss_alignment", "loss_scores", "loss_boxes", "rank", "gap", "nms_removed", "below_floor", "olrp",
    "olrp_localisation", "olrp_false_positive", "olrp_false_negative", "d_ece", "la_ece",
}  # fmt: skip
MORE_COLUMNS = (
    "tide_classification", "tide_localisation", "tide_both", "tide_duplicate", "tide_background", "tide_missed",
    "olrp_localisation", "olrp_false_positive", "olrp_false_negative", "d_ece", "ap_ranking", "ap_localisation",
    "spearman_kept",
)  # fmt: skip
COLUMNS = ("ap", "loss_alignment", "rank", "gap", "nms_removed", "covered", "spearman", "olrp", "la_ece", "threshold")
LOSS_SOURCES = {
    "agreement": "loss_alignment", "boxes": "loss_boxes", "classes": "loss_classes", "unseen": "loss_unseen",
}  # fmt: skip
PRESS = "Press a picture to enlarge it; the run also wrote each whole, as a PNG."
SIZES_INTRO = (
    "Sizes are COCO's: small under 32² pixels, large over 96². Small figures are intervals. Each class has a threshold "
    "of its own, so there is none for a size."
)
LOSS_PARTS = {
    "agreement": ("head: disagreement", "scores do not follow IoU inside an object"),
    "boxes": ("boxes", "the head's localisation, or labels drawn loosely"),
    "classes": ("data, classes", "confusion, background, low scores"),
    "unseen": ("data, unseen", "never proposed with the right class"),
}
TIDE_NAMES = {
    "tide_classification": ("class", "right box, wrong class"),
    "tide_localisation": ("localisation", "right class, IoU 0.1–0.5"),
    "tide_both": ("both", "wrong class and loose box"),
    "tide_duplicate": ("duplicate", "object already found"),
    "tide_background": ("background", "on no label"),
    "tide_missed": ("missed", "object nobody points at"),
}
DEFINITIONS = {
    "Raw boxes": "Every anchor point of the head, before NMS and any top-k, boxes clipped to the image. An object's "
    "boxes are those that find it: IoU 0.5 or more, and no other object of the class overlapped more.",
    "Rank, best box first": "The object's boxes ordered by score; the rank is the place of the one with the best IoU. "
    "Objects with no box of IoU 0.5 are not covered and have no rank. After Figure 1 of TSCODE (arXiv:2303.01047).",
    "Winner gap": "Best IoU minus the IoU of the object's top-scoring box.",
    "Best box removed by NMS": "The best box is above the score floor, NMS suppressed it, and a survivor that overlaps "
    "it beyond the threshold is worse for this object. Not defined for heads without NMS.",
    "Spearman, Pearson": "Score against IoU over the boxes of one object, averaged over objects with three or more.",
    "AP, scores re-dealt": "Each object's own scores dealt out again in the order of IoU, then NMS. No more.",
    "AP if scores were IoUs": "Each score becomes the IoU with the best object of its class (0 drops out), then NMS; "
    "compare VarifocalNet (arXiv:2008.13367), Table 1.",
    "AP if boxes were perfect": "Each box that overlaps an object of its class by IoU 0.1 takes that object's box; "
    "scores stay, then NMS.",
    "Split of the loss": "1 - AP = scores + boxes + unseen; scores and boxes are the mean of the gain taken first and "
    "taken second (Shapley value). Disagreement is the part of the score half that re-dealing recovers.",
    "AP": "COCO: 101 recalls, IoU 0.50 to 0.95, crowds ignored, all detections the limit lets through. Means over "
    "classes that have objects. It differs from the host's own interpolation by a little.",
    "Spearman, Pearson, kept boxes": "Score against IoU with the best object of the class over all boxes that "
    "NMS kept, IoU 0.1 or more; by size: the size of that object.",
    "TIDE": "arXiv:2008.08115: AP50 gained by repairing one kind of error. By size, which TIDE has not: the same "
    "repairs, AP50 on COCO's size range.",
    "LRP, optimal threshold": "arXiv:2011.10772: least over scores of (sum of (1 - IoU) / 0.5 over hits + false "
    "positives + misses) / all three; the score where it is reached is the class's best threshold.",
    "D-ECE, LaECE": "arXiv:2004.13546 (20 bins, all classes) and arXiv:2307.00934 (25 bins a class, then the mean), "
    "for detections with a score of 0.05 or more, hits at IoU 0.5.",
    "Intervals": "95 %, bias-corrected percentiles of a bootstrap over images; differences are paired. Every number is "
    "computed anew in each draw, an optimal threshold too. There is none where fewer than 20 draws held anything to "
    "measure.",
    "Gradient maps": "HiResCAM (arXiv:2011.08891) at the head's inputs, for the class logit and for the four sides of "
    "the object's top-scoring box; below it the gradient at the pixels. In a head with "
    "lqe the class logit holds what the box tower adds.",
}
CSS = """
:root{color-scheme:light;--ink:#1b1f23;--soft:#57606a;--line:#dfe3e8;--paper:#fff;--page:#f5f7f9;
--reached:#12a150;--agreement:#d6336c;--boxes:#f08c00;--classes:#1c7ed6;--unseen:#868e96}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:16px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:1080px;margin:0 auto;padding:16px}
header,section{background:var(--paper);
border:1px solid var(--line);border-radius:10px;padding:18px 20px;margin:0 0 14px}
h1{font-size:clamp(1.3rem,3.6vw,2rem);line-height:1.25;margin:.1em 0 .4em}
h2{font-size:1.2rem;margin:0 0 .2em}h3{font-size:1rem;margin:1em 0 .4em;overflow-wrap:anywhere}
p{margin:.2em 0 .8em;color:var(--soft);overflow-wrap:anywhere}.kicker{font-size:.85rem;margin:0}
.said{margin:0;padding-left:1.1em}.said li{margin:.3em 0}
small{display:block;color:var(--soft);font-size:.78rem;font-weight:400;line-height:1.3}
.stack{display:flex;height:26px;border-radius:6px;overflow:hidden;margin:.2em 0 .8em;background:var(--line)}
.stack i{display:block}
.bar{display:grid;grid-template-columns:minmax(130px,240px) 1fr 104px;gap:10px;align-items:center;margin:.35em 0}
.bar b{text-align:right;font-variant-numeric:tabular-nums;line-height:1.2}
.track{background:#eef1f4;border-radius:5px;height:16px}
.track i{display:block;height:100%;border-radius:5px}
.reached{background:var(--reached)}.agreement{background:var(--agreement)}.boxes{background:var(--boxes)}
.classes{background:var(--classes)}.unseen{background:var(--unseen)}
.columns{display:grid;grid-template-columns:repeat(auto-fit,minmax(300px,1fr));gap:20px}
.scroll{overflow-x:auto}table{border-collapse:collapse;width:100%;font-size:.92rem}
th,td{padding:6px 10px;border-bottom:1px solid var(--line);text-align:right;vertical-align:top;
font-variant-numeric:tabular-nums}
th:first-child{text-align:left;position:sticky;left:0;background:var(--paper)}td small{white-space:nowrap}
.better{color:#0b7a3b;font-weight:600}.worse{color:#b3124a;font-weight:600}
.gallery{display:grid;gap:22px}.gallery.two{grid-template-columns:repeat(auto-fit,minmax(300px,1fr))}
.parts{display:grid;gap:10px;align-items:start}.parts.two{grid-template-columns:1fr 1fr}
.parts.many{grid-template-columns:repeat(4,1fr)}
.zoom{display:block;overflow-x:auto;cursor:zoom-in}.zoom:has(:checked){grid-column:1/-1;cursor:zoom-out}
.zoom input{position:absolute;opacity:0}.zoom:focus-within{outline:2px solid var(--classes)}
figure{margin:0}img{width:100%;height:auto;border-radius:6px;display:block}
figcaption{font-size:.85rem;color:var(--soft);padding-top:4px;overflow-wrap:anywhere}
summary{cursor:pointer;font-weight:600;padding:4px 0}dt{font-weight:600;margin-top:.5em}dd{margin:0;color:var(--soft)}
@media(max-width:560px){main{padding:8px}header,section{padding:14px 12px}
.parts.two{grid-template-columns:1fr}.parts.many{grid-template-columns:1fr 1fr}
.zoom:has(:checked) img{width:200%;max-width:none}
.bar{grid-template-columns:1fr 104px}.bar .track{grid-row:2;grid-column:1/3}th,td{padding:5px 4px}
table{font-size:.82rem}th small,td small{font-size:.68rem;white-space:normal}
th:first-child{min-width:96px;max-width:120px}}
@media print{section{break-inside:avoid}}
"""
