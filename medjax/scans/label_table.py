"""The label table of a mask file: label value -> class name as an extension of a NIfTI header.

In: names, or the text of an extension. Out: the extension, or the names.
"""

import colorsys
import io
import re
import sys
from collections.abc import Mapping

import nibabel as nib


def table_bytes(names: Mapping[int, str], header: nib.Nifti1Header) -> bytes:
    """Label value -> name as the bytes of a header extension, in the header's byte order."""
    sink = io.BytesIO()
    swap = header.endianness != ("<" if sys.byteorder == "little" else ">")
    extension(names).write_to(sink, swap)
    return sink.getvalue()


def extension(names: Mapping[int, str]) -> nib.nifti1.Nifti1Extension:
    """Label value -> name as a header extension: Caret's XML under code 0.

    TotalSegmentator writes this form and common viewers read it.
    """
    rows = []
    for value, name in sorted(names.items()):
        red, green, blue = (
            colorsys.hsv_to_rgb(value * 0.618034 % 1.0, 0.65, 0.95) if value else (0.0, 0.0, 0.0)
        )
        safe = str(name).replace("]]>", "]]")
        rows.append(
            f'<Label Key="{int(value)}" Red="{red:.3f}" Green="{green:.3f}" Blue="{blue:.3f}" '
            f'Alpha="1"><![CDATA[{safe}]]></Label>'
        )
    xml = (
        '<?xml version="1.0" encoding="UTF-8"?> <CaretExtension> <VolumeInformation Index="0"> '
        "<LabelTable>\n"
        + "\n".join(rows)
        + "\n</LabelTable> <StudyMetaDataLinkSet> </StudyMetaDataLinkSet> "
        "<VolumeType><![CDATA[Label]]></VolumeType>" + " </VolumeInformation></CaretExtension>\n"
    )
    return nib.nifti1.Nifti1Extension(0, xml.encode("utf-8"))


def parse(text: str) -> dict[int, str]:
    """Inverse of `extension`, also for TotalSegmentator's files.

    Returns label value -> name; {} without a table.
    """
    found = re.findall(
        r'<Label\b[^>]{0,400}?\bKey="(\d{1,9})"[^>]{0,400}>\s{0,40}<!\[CDATA\[(.{0,400}?)\]\]>',
        text,
        re.DOTALL,
    )
    return {int(value): name for value, name in found}
