"""What Hypothesis draws for the contract's types."""

from hypothesis import strategies as st

from fleet.identity import DeviceId, Principal, Role

device_ids = st.from_regex(r"[a-z0-9]([a-z0-9_-]{0,10}[a-z0-9])?", fullmatch=True).map(DeviceId)
principals = st.builds(Principal, st.sampled_from(Role), device_ids)
names = st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,10}[A-Za-z0-9])?", fullmatch=True)

# A small alphabet, so that filters and topics meet often.
levels = st.sampled_from(["", "a", "b", "devices", "up", "$SYS"])
topic_names = st.lists(levels, min_size=1, max_size=4).map("/".join).filter(bool)
topic_filters = (
    st.tuples(
        st.lists(st.one_of(levels, st.just("+")), min_size=0, max_size=4),
        st.sampled_from([[], ["#"]]),
    )
    .map(lambda parts: "/".join(parts[0] + parts[1]))
    .filter(bool)
)
