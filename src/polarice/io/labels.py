"""The RELION labels that Polarice reads or writes: name, type, unit, and how a value is written as text."""

from __future__ import annotations

from typing import NamedTuple


class Label(NamedTuple):
    """One STAR column: `kind` is "float", "int" or "text"; `text` a printf format, or "" for the format of the kind."""

    kind: str
    unit: str = ""
    text: str = ""


LABELS: dict[str, Label] = {
    # where the image lies
    "rlnImageName": Label("text"),  # section@stack, sections from 1
    "rlnMicrographName": Label("text"),
    "rlnGroupName": Label("text"),
    "rlnGroupNumber": Label("int"),
    "rlnCoordinateX": Label("float", "px"),
    "rlnCoordinateY": Label("float", "px"),
    # movies and micrographs
    "rlnMicrographMovieName": Label("text"),
    "rlnMicrographMetadata": Label("text"),  # the STAR file of a movie's motion
    "rlnMicrographNameNoDW": Label("text"),
    "rlnCtfPowerSpectrum": Label("text"),
    "rlnMicrographPreExposure": Label("float", "e/A^2"),
    "rlnMicrographDoseRate": Label("float", "e/A^2"),  # per frame
    "rlnMicrographBinning": Label("float"),
    "rlnMicrographFrameNumber": Label("int"),  # from 1
    "rlnMicrographShiftX": Label("float", "px"),
    "rlnMicrographShiftY": Label("float", "px"),
    "rlnMotionModelCoeffsIdx": Label("int"),
    "rlnMotionModelCoeff": Label("float"),
    "rlnAccumMotionTotal": Label("float", "A"),
    "rlnAccumMotionEarly": Label("float", "A"),
    "rlnAccumMotionLate": Label("float", "A"),
    "rlnBeamTiltX": Label("float", "mrad"),
    "rlnBeamTiltY": Label("float", "mrad"),
    # optics
    "rlnOpticsGroup": Label("int"),  # from 1
    "rlnOpticsGroupName": Label("text"),
    "rlnVoltage": Label("float", "kV"),
    "rlnSphericalAberration": Label("float", "mm"),
    "rlnAmplitudeContrast": Label("float"),
    "rlnImagePixelSize": Label("float", "A"),
    "rlnMicrographPixelSize": Label("float", "A"),
    "rlnMicrographOriginalPixelSize": Label("float", "A"),
    "rlnImageSize": Label("int", "px"),
    "rlnImageDimensionality": Label("int"),
    "rlnMagnification": Label("float"),  # up to RELION 3.0
    "rlnDetectorPixelSize": Label("float", "um"),  # up to RELION 3.0
    # contrast transfer function
    "rlnDefocusU": Label("float", "A"),
    "rlnDefocusV": Label("float", "A"),
    "rlnDefocusAngle": Label("float", "deg"),
    "rlnPhaseShift": Label("float", "deg"),
    "rlnCtfBfactor": Label("float", "A^2"),
    "rlnCtfScalefactor": Label("float"),
    "polariceCtfDrift": Label("float"),  # of a micrograph's rings; 1 and more is drift
    # pose and posterior
    "rlnClassNumber": Label("int"),  # from 1
    "rlnAngleRot": Label("float", "deg"),
    "rlnAngleTilt": Label("float", "deg"),
    "rlnAnglePsi": Label("float", "deg", "%12.6f"),
    "rlnOriginX": Label("float", "px", "%12.6f"),  # up to RELION 3.0
    "rlnOriginY": Label("float", "px", "%12.6f"),  # up to RELION 3.0
    "rlnOriginXAngst": Label("float", "A", "%12.6f"),
    "rlnOriginYAngst": Label("float", "A", "%12.6f"),
    "rlnNormCorrection": Label("float"),
    "rlnLogLikeliContribution": Label("float", "", "%12.6e"),
    "rlnMaxValueProbDistribution": Label("float", "", "%12.6f"),
    "rlnNrOfSignificantSamples": Label("int"),
    # place on the map of sml, in [-1, 1] along each of up to three axes, and the spread of its posterior
    **{f"polariceLatent{axis}{kind}": Label("float", "", "%12.6f") for axis in (1, 2, 3) for kind in ("", "Sd")},
}
