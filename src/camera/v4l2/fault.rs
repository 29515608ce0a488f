//! What an error of the kernel means for a camera, and what to do about it.

use std::io;

use crate::camera::CameraError;

/// What was being done when the kernel refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Open,
    Identify,
    ListFormats,
    SetFormat,
    SetRate,
    Start,
    Capture,
}

impl Step {
    fn words(self) -> &'static str {
        match self {
            Self::Open => "cannot be opened",
            Self::Identify => "does not say what it is",
            Self::ListFormats => "does not list its formats",
            Self::SetFormat => "refuses the format",
            Self::SetRate => "refuses the frame rate",
            Self::Start => "does not start",
            Self::Capture => "stopped",
        }
    }
}

/// The error for what the kernel said about `device` in `step`; `mode` is the format, where one was chosen.
pub(super) fn explain(device: &str, mode: &str, step: Step, error: &io::Error) -> CameraError {
    let code = error.raw_os_error().unwrap_or(0);
    let (seen, cure) = meaning(step, code);
    let mode = if mode.is_empty() { String::new() } else { format!("{mode} ") };
    let device = device.to_owned();
    let detail = match seen {
        "" => format!("{mode}{} ({error})", step.words()),
        seen => format!("{mode}{}: {seen}", step.words()),
    };
    let cure = cure.to_owned();
    // What is no camera will not become one; everything else can pass: a plug, a rule of udev, another program.
    if step == Step::Identify && matches!(code, libc::ENOTTY | libc::EINVAL) {
        CameraError::Unusable { device, detail, cure }
    } else {
        CameraError::Unavailable { device, detail, cure }
    }
}

fn meaning(step: Step, code: i32) -> (&'static str, &'static str) {
    match code {
        libc::ENOENT => {
            ("no such device", "plug the camera in, or set the path that `ls /dev/video*` shows")
        }
        libc::ENODEV | libc::ENXIO if step == Step::Open => (
            "no driver answers for it",
            "plug the camera in again, or load its driver (`dmesg` names it)",
        ),
        libc::ENODEV | libc::ENXIO => {
            ("it was unplugged", "plug it in again, and check cable and power")
        }
        libc::EACCES | libc::EPERM => (
            "permission denied",
            "add the agent's user to the group `video`, or run it with DeviceAllow= set",
        ),
        libc::EBUSY => {
            ("another program uses it", "stop that program; `fuser -v` with the device names it")
        }
        libc::ENOSPC => (
            "the USB bus has no bandwidth left",
            "set a smaller size or lower fps, or move the camera to another USB controller",
        ),
        libc::EIO | libc::EPROTO | libc::EILSEQ | libc::EOVERFLOW => {
            ("transfer failed", "check cable, hub and power supply, or try another port")
        }
        libc::ETIMEDOUT => ("it does not answer", "check cable and power, or plug it in again"),
        libc::ENOMEM => (
            "no memory for its buffers",
            "set a smaller size, or enlarge the CMA area (`cma=` at boot)",
        ),
        libc::ENOTTY | libc::EINVAL if step == Step::Identify => {
            ("it is no V4L2 device", "set the path of a camera, which `ls /dev/video*` shows")
        }
        libc::EINVAL if step == Step::Start => (
            "the driver rejects it",
            "link the sensor to the capture node with media-ctl, or set another size",
        ),
        libc::ENOLINK | libc::EPIPE => {
            ("no sensor is linked to it", "link the sensor to the capture node with media-ctl")
        }
        libc::EINVAL => ("the driver rejects it", "set another size or fps"),
        libc::EMFILE | libc::ENFILE => ("too many open files", "raise LimitNOFILE= of the service"),
        _ => ("", "see `dmesg`, and plug the camera in again"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_names_device_format_and_cure() {
        struct Case {
            code: i32,
            step: Step,
            detail: &'static str,
            cure: &'static str,
        }
        let case = |code, step, detail, cure| Case { code, step, detail, cure };
        let cases = [
            case(libc::ENOENT, Step::Open, "no such device", "ls /dev/video*"),
            case(libc::EACCES, Step::Open, "permission denied", "group `video`"),
            case(libc::EPERM, Step::Open, "permission denied", "group `video`"),
            case(libc::EBUSY, Step::Open, "another program", "fuser"),
            case(libc::EBUSY, Step::SetFormat, "another program", "fuser"),
            case(libc::ENXIO, Step::Open, "no driver", "dmesg"),
            case(libc::ENODEV, Step::Capture, "unplugged", "plug it in again"),
            case(libc::EIO, Step::Capture, "transfer failed", "cable"),
            case(libc::ENOSPC, Step::Start, "bandwidth", "smaller size"),
            case(libc::ENOMEM, Step::Start, "no memory", "smaller size"),
            case(libc::EPIPE, Step::Start, "no sensor", "media-ctl"),
            case(libc::EINVAL, Step::SetFormat, "rejects", "another size"),
            case(libc::EMFILE, Step::Open, "too many open files", "LimitNOFILE"),
            case(libc::EDOM, Step::Capture, "stopped (", "dmesg"),
        ];
        for Case { code, step, detail, cure } in cases {
            let error = io::Error::from_raw_os_error(code);
            let explained = explain("/dev/video7", "YUYV 640x480", step, &error);
            let message = explained.to_string();
            for part in ["/dev/video7", "YUYV 640x480", detail, cure] {
                assert!(message.contains(part), "{code} in {step:?}: no `{part}` in `{message}`");
            }
            assert!(matches!(explained, CameraError::Unavailable { .. }), "{message}");
        }
    }

    #[test]
    fn what_is_no_camera_is_unusable() {
        for code in [libc::ENOTTY, libc::EINVAL] {
            let error = io::Error::from_raw_os_error(code);
            let explained = explain("/dev/null", "", Step::Identify, &error);
            assert!(matches!(explained, CameraError::Unusable { .. }), "{explained}");
            assert!(explained.to_string().contains("no V4L2 device"), "{explained}");
        }
    }
}
