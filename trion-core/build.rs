//! Tells `src/kernel` of ARM's DSP instructions (`arm_dsp`), which compilers keep to themselves but for unstable ones. Every
//! ARMv7E-M processor has them: Cortex-M4 and M7.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-check-cfg=cfg(arm_dsp)");
    if std::env::var("TARGET").is_ok_and(|target| target.starts_with("thumbv7em")) {
        println!("cargo::rustc-cfg=arm_dsp");
    }
}
