"""Detect (or track) on a live stream: python examples/stream.py WEIGHTS SOURCE [--track] [--out FILE.mp4] [--show].

SOURCE is a video file, a webcam index (0) or an RTSP/HTTP URL. Frames are handled one by one and dropped, so memory
stays the same however long the stream is. Ends at the end of the stream or at Ctrl-C, with the mp4 closed properly.
"""

import argparse
import time

import cv2
import numpy as np
from ultralytics import YOLO


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights")
    parser.add_argument("source")
    parser.add_argument("--track", action="store_true", help="keep identities with ByteTrack")
    parser.add_argument("--out", help="annotated mp4")
    parser.add_argument("--show", action="store_true", help="window on the screen; q ends")
    parser.add_argument("--imgsz", type=int, default=640)
    args = parser.parse_args(argv)

    model = YOLO(args.weights)
    options = {"source": args.source, "stream": True, "imgsz": args.imgsz, "verbose": False}
    results = model.track(**options, tracker="bytetrack.yaml") if args.track else model.predict(**options)
    writer, frames, start = None, 0, time.perf_counter()
    try:
        for result in results:
            frames += 1
            image = result.plot() if args.out or args.show else None
            if args.out and writer is None:
                size = (image.shape[1], image.shape[0])
                fps = np.ravel(model.predictor.dataset.fps)[0] or 25  # one a stream; 0 where the file does not say
                writer = cv2.VideoWriter(args.out, cv2.VideoWriter_fourcc(*"mp4v"), float(fps), size)
                if not writer.isOpened():
                    raise SystemExit(
                        f"--out {args.out}: OpenCV cannot write an mp4 there; expected a folder that exists"
                    )
            if writer is not None:
                writer.write(image)
            if args.show:
                cv2.imshow("tscode", image)
                if cv2.waitKey(1) == ord("q"):
                    break
            if frames % 25 == 0:
                print(
                    f"frame {frames}: {len(result.boxes)} objects, {frames / (time.perf_counter() - start):.1f} FPS",
                    flush=True,
                )
    except KeyboardInterrupt:
        print("stopped", flush=True)
    finally:
        if writer is not None:
            writer.release()
    print(f"{frames} frames, {frames / (time.perf_counter() - start):.1f} FPS")
    return 0 if frames else 1


if __name__ == "__main__":
    raise SystemExit(main())
