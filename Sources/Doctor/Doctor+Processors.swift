// Processors, clocks.
extension Doctor {
    func processors() -> [Finding] { [governor()] }

    private func governor() -> Finding {
        let folder = "/sys/devices/system/cpu"
        let slow = tree.names(in: folder).filter {
            $0.hasPrefix("cpu") && $0.dropFirst(3).allSatisfy(\.isNumber)
        }
        .compactMap { tree.text("\(folder)/\($0)/cpufreq/scaling_governor") }.filter { $0 != "performance" }
        guard let name = slow.first else {
            return good("governor", "the processors' speed is not throttled by a governor")
        }
        return finding(
            .warning, .governor, "\(slow.count) processors have the governor '\(name)'",
            cost: "a thread that slept wakes on a slow processor: several microseconds for a small transfer",
            do: "cpupower frequency-set -g performance")
    }

    func clock() -> [Finding] { [clockSource(), clockIsSet()] }

    private func clockSource() -> Finding {
        let path = "/sys/devices/system/clocksource/clocksource0/current_clocksource"
        guard let source = tree.text(path),
            ["hpet", "acpi_pm", "jiffies", "refined-jiffies"].contains(source)
        else { return good("clocksource", "the time is read without asking the kernel") }
        return finding(
            .warning, .clocksourceSlow, "the kernel's clock is '\(source)'",
            cost: "each look at the time takes about a microsecond instead of 25 ns",
            do: "echo tsc > \(path)   # if it is not in available_clocksource: boot with tsc=reliable")
    }

    private func clockIsSet() -> Finding {
        guard tree.fact("clock") == "unsynchronized" else {
            return good("clock", "the clock is kept by a time service, or that is not known")
        }
        return finding(
            .note, .clockUnsynchronized, "no time service keeps the clock",
            cost:
                "descriptors that expire are refused early or late, and traces of several hosts do not fit together",
            do: "systemctl enable --now chrony   # apt-get install chrony")
    }
}
