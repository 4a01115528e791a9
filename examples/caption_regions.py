"""
Describe the regions of a picture, and draw them over it.

    python examples/caption_regions.py photo.jpg --model_name_or_path outputs/region_captioner --output regions.png

The captioner is one that `make_region_dataset.py` has made the dataset of. Of boxes that overlap, the one stays whose sentence
is the most probable.
"""

import torch
import transformers

from modeling_cnnrnn import CnnRnnForConditionalGeneration, CnnRnnProcessor, load_image
from modeling_cnnrnn.cli.arguments import parse_arguments
from modeling_cnnrnn.cli.errors import user_errors
from modeling_cnnrnn.evaluation.arguments import CaptionRegionsArguments
from modeling_cnnrnn.evaluation.region_captions import caption_regions


def main():
    (args,) = parse_arguments([CaptionRegionsArguments], __doc__)
    transformers.logging.disable_progress_bar()  # loading the weights takes no time

    # 1. The picture and the captioner
    image = load_image(args.image)
    processor = CnnRnnProcessor.from_pretrained(args.model_name_or_path, revision=args.model_revision)
    model = CnnRnnForConditionalGeneration.from_pretrained(args.model_name_or_path, revision=args.model_revision)
    model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()

    # 2. A sentence for each region
    regions = caption_regions(
        model,
        processor,
        image,
        grid_sizes=args.grid_sizes,
        iou_threshold=args.iou_threshold,
        max_regions=args.max_regions,
        num_beams=args.num_beams,
    )
    for region in regions:
        box = " ".join(f"{side:.0f}" for side in region["box"])
        print(f"{region['score']:.2f}  [{box}]  {region['text']}")

    # 3. The figure
    if args.output is not None:
        from modeling_cnnrnn.evaluation.figures import save_region_figure

        save_region_figure(args.output, image, regions)


if __name__ == "__main__":
    with user_errors():
        main()
